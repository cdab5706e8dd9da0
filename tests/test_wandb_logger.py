"""A run's logger where W&B refuses the key or cannot be reached: offline, or one line before anything is sampled."""

import os
from types import SimpleNamespace

import pytest

from vsr_lightning import wandb_logger
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Experiment, Logging


@pytest.fixture
def runs_begun(monkeypatch, tmp_path):
    """The modes in which W&B runs were begun; only offline ones succeed."""
    import wandb

    modes = []

    def init(**options):
        modes.append(os.environ.get("WANDB_MODE"))  # Lightning's way of telling it
        if modes[-1] != "dryrun":
            raise wandb.errors.CommError("no route to host\nafter 3 tries")
        return SimpleNamespace(url=None, dir=str(tmp_path / "offline-run" / "files"), id="run")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: modes.append("teardown"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "")  # Lightning sets it: to be put back
    monkeypatch.delenv("WANDB_MODE")
    return modes


def experiment(mode="auto"):
    return Experiment(data={"target": "some.Clips"}, logging=Logging(mode=mode))


def test_without_a_network_it_logs_offline_and_says_why(runs_begun, tmp_path, capsys):
    logger = wandb_logger.make_logger(experiment(), tmp_path, "sweep")
    assert logger.experiment.id == "run"
    assert runs_begun == [None, "teardown", "dryrun"]
    output = capsys.readouterr()
    assert output.err == "W&B: no route to host; logging offline\n"
    assert "wandb sync" in output.out


def test_whoever_asks_for_online_gets_it_or_one_line(runs_begun, tmp_path):
    with pytest.raises(UserError, match="W&B: no route to host; mend that, or set logging.mode=disabled"):
        wandb_logger.make_logger(experiment("online"), tmp_path, "sweep")
    assert runs_begun == [None]
