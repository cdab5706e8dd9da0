"""The precision that a run computes in, is recorded with, and goes on in."""

import json

import lightning as L
import pytest
import torch
from tiny_sweep import SWEEP, experiment

from vsr_lightning import processes, runs
from vsr_lightning.config import load_config
from vsr_lightning.evaluation import restoring
from vsr_lightning.evaluation.dry_run import dry_run
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.experiment import Experiment, Trainer
from vsr_lightning.training.run import make_trainer

VAE = SWEEP.with_name("vae.yaml")
GPU, AVX, AMX, OLD = "a GPU", "avx512_bf16", "amx_bf16", "a CPU without"
ONE = ("grid.num_frames=[1]", "grid.noises=1", "figures=[]")  # of two videos: two items
KINDS = {"bf16-mixed": True, "32-true": False}  # whether the CPU has instructions for it


@pytest.mark.parametrize(
    ("machine", "training", "sampling"),
    [
        (GPU, "bf16-mixed", "bf16-mixed"),
        (AVX, "32-true", "bf16-mixed"),
        (AMX, "32-true", "bf16-mixed"),
        (OLD, "32-true", "32-true"),
    ],
)
def test_precision_is_what_the_machine_is_fast_in(monkeypatch, machine, training, sampling):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine == GPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {machine: True, "avx2": True})
    assert processes.precision(Experiment(), "train") == training
    assert processes.precision(Experiment(), "sweep") == sampling


@pytest.mark.parametrize("kind", ["train", "sweep"])
def test_precision_is_as_told(monkeypatch, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert processes.precision(Experiment(trainer=Trainer(precision="32-true")), kind) == "32-true"


@pytest.fixture
def computed_in(monkeypatch):
    """The precisions that Lightning was asked for."""
    asked, trainer = [], L.Trainer
    monkeypatch.setattr(
        restoring.L, "Trainer", lambda **options: (asked.append(options["precision"]), trainer(**options))[1]
    )
    return asked


def on_a_cpu(monkeypatch, has_bf16):
    monkeypatch.setattr(processes, "multiplies_bf16", lambda: has_bf16)


@pytest.mark.parametrize("precision", KINDS)
def test_a_sweep_computes_in_the_precision_that_is_recorded(precision, tiny_prior, tmp_path, monkeypatch, computed_in):
    on_a_cpu(monkeypatch, KINDS[precision])
    folder = sweep(experiment(tiny_prior, tmp_path, "trainer.precision=auto", *ONE))
    assert [json.loads((folder / "meta.json").read_text())["precision"]] == computed_in == [precision]
    other = experiment(tiny_prior, tmp_path, "trainer.precision=auto", "name=other", *ONE)
    assert "by 2 restorations measured" in dry_run(other)
    on_a_cpu(monkeypatch, not KINDS[precision])
    assert "time: unknown" in dry_run(other)


@pytest.mark.parametrize("precision", KINDS)
def test_a_folder_is_gone_on_with_in_its_precision(precision, tiny_prior, tmp_path, monkeypatch, computed_in, capsys):
    """Whatever this machine's default is; what is done already is not said to be of another."""
    command = (tiny_prior, tmp_path, "trainer.precision=auto", *ONE)
    on_a_cpu(monkeypatch, KINDS[precision])
    folder = sweep(experiment(*command), limit=1)
    on_a_cpu(monkeypatch, not KINDS[precision])
    assert "by 1 restorations measured" in dry_run(experiment(*command))
    sweep(experiment(*command))
    sweep(experiment(*command))
    meta = json.loads((folder / "meta.json").read_text())
    assert computed_in == [precision] * 2
    assert [go["precision"] for go in (meta, *meta["resumed"])] == [precision] * 3
    assert "so far made in" not in capsys.readouterr().err


def test_folders_older_than_the_record_are_of_the_former_default(
    tiny_prior, tmp_path, monkeypatch, computed_in, capsys
):
    command = (tiny_prior, tmp_path, *ONE)
    folder = sweep(experiment(*command, "trainer.precision=32-true"), limit=1)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["precision"]
    (folder / "meta.json").write_text(json.dumps(meta))
    on_a_cpu(monkeypatch, has_bf16=True)
    other = experiment(*command, "trainer.precision=auto", "name=other")
    assert "time: unknown" in dry_run(other)
    sweep(experiment(*command, "trainer.precision=auto"))
    assert computed_in == ["32-true"] * 2
    assert "so far made in" not in capsys.readouterr().err


def test_training_computes_in_the_precision_that_is_recorded(tmp_path, monkeypatch):
    """In float32, also on a CPU that samples in bf16."""
    on_a_cpu(monkeypatch, has_bf16=True)
    experiment = load_config(VAE, ["trainer.accelerator=cpu", "logging.mode=disabled", f"runs_dir={tmp_path}"])
    meta = json.loads((runs.open_run(experiment, "train", {}) / "meta.json").read_text())
    trainer = make_trainer(experiment, experiment.folder, tmp_path / "last.ckpt")
    assert trainer.precision == meta["precision"] == "32-true"
