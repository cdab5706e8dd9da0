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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": machine == BF16}, raising=False)
    experiment = Experiment()
    assert processes.training_precision(experiment) == training
    assert processes.sampling_precision(experiment) == sampling


def test_precision_is_as_told(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    experiment = Experiment(trainer=Trainer(precision="32-true"))
    assert processes.training_precision(experiment) == processes.sampling_precision(experiment) == "32-true"


def test_a_torch_that_does_not_know_the_cpu_samples_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert processes.sampling_precision(Experiment()) == "32-true"
