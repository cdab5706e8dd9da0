"""The precision that a run computes in."""

import pytest
import torch

from vsr_lightning import processes
from vsr_lightning.experiment import Experiment, Trainer

GPU, BF16, OLD = "a GPU", "a CPU with bf16", "a CPU without"


@pytest.mark.parametrize(
    ("machine", "training", "sampling"),
    [(GPU, "bf16-mixed", "bf16-mixed"), (BF16, "32-true", "bf16-mixed"), (OLD, "32-true", "32-true")],
)
def test_precision_is_what_the_machine_is_fast_in(monkeypatch, machine, training, sampling):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine == GPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": machine == BF16})
    assert processes.precision(Experiment(), "train") == training
    assert processes.precision(Experiment(), "sweep") == sampling


@pytest.mark.parametrize("kind", ["train", "sweep"])
def test_precision_is_as_told(monkeypatch, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert processes.precision(Experiment(trainer=Trainer(precision="32-true")), kind) == "32-true"
