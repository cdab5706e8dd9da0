"""What the Makefile's targets would run, told by `make --dry-run` in folders that hold only what a test puts there."""

import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def would_run(folder: Path, *arguments: str) -> str:
    command = ["make", "--dry-run", "--no-print-directory", "-f", str(MAKEFILE), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder(tmp_path):
    for name in ("pyproject.toml", "constraints.txt"):  # what .venv is made from
        (tmp_path / name).touch()
    return tmp_path


def put_prior(folder: Path, name: str) -> None:
    card = folder / "data/checkpoints" / name / "card.yaml"
    card.parent.mkdir(parents=True)
    card.touch()


@pytest.mark.parametrize(("source", "experiment"), [("bair", "bair"), ("sim", "push_sim")])
def test_robot_pushing_is_evaluated_with_ones_own_prior_else_the_shipped_one(folder, source, experiment):
    def prior(*arguments):
        line = would_run(folder, "eval-bair", f"SOURCE={source}", *arguments).splitlines()[-1]
        assert f" evaluate experiments/{experiment}/eval.yaml " in line
        return line.partition(" prior=data/checkpoints/")[2].split()[0]

    assert prior() == f"mine-{experiment}"  # the one that is missing is named
    put_prior(folder, experiment)
    (folder / f"data/checkpoints/mine-{experiment}").mkdir()  # an export that was interrupted has no card
    assert prior() == experiment
    (folder / f"data/checkpoints/mine-{experiment}").rmdir()
    put_prior(folder, f"mine-{experiment}")
    assert prior() == f"mine-{experiment}"
    assert f"prior=data/checkpoints/{prior()} " in would_run(folder, "train-bair", f"SOURCE={source}")
    assert prior("PRIOR=data/checkpoints/other") == "other"


def test_figures_are_of_the_sweep_that_is_named(folder):
    for arguments, named in (([], "sweep_frames"), (["SWEEP=experiments/moving_mnist/demo.yaml"], "demo")):
        line = would_run(folder, "figures", *arguments).splitlines()[-1]
        assert line.split()[1:] == ["-m", "vsr_lightning", "figures", f"experiments/moving_mnist/{named}.yaml"]
