"""What is wrong with a sweep is told before anything is written."""

from pathlib import Path

import pytest
from tiny_sweep import experiment

from vsr_lightning.config import load_config
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation.run import sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "moving_mnist"
POLYAK = "vsr_lightning.inference.dps_polyak.dps_polyak_sample"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.num_frames=[0]", r"grid.num_frames: 0 is not between 1 and 10"),
        ("grid.num_frames=[11]", r"grid.num_frames: 11 is not between 1 and 10"),
        ("grid.order=[backwards]", r"grid.order.*backwards"),
        ("grid.videos=3", r"grid.videos: 3 asked for, the test split has 2"),
        ("grid.steps=[2000]", r"dps_restart: grid.steps: 2000 are more than the 1249 timesteps"),
        ("sampler.steps=2000", r"dps_restart: sampler.steps: 2000 are more than the 1249 timesteps"),
        ("grid.sampler=[foo]", r"grid.sampler: 'foo' is not in samplers, of which there are none here"),
        ("sampler={target: vsr_lightning.inference.dps.dps_sample}", r"sampler.steps: missing for dps"),
        ("sampler.max_move=-1", r"dps_restart: sampler.max_move: -1 is not at least 0"),
        ("sampler.restarts=2", r"sampler.restarts: 2 is not of type list of float"),
        ("degradation.factor=7", r"factor"),
        ("grid.factor=[8,7]", r"degradation.factor=7, or grid.factor: must divide"),
        ("grid.kernel=[gaussian,cubic]", r"degradation.kernel=cubic, or grid.kernel: unknown; choose"),
        ("data.num_frames=5", r"prior: .* makes videos \(10, 1, 64, 64\)"),
        ("prior=nowhere", r"nowhere/card.yaml: no such file"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(override, message, tiny_prior, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep(experiment(tiny_prior, tmp_path / "runs", override))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("eta: 2", r"sampler.eta: 2 is not from 0"), ("spacing: even", r"sampler.spacing: 'even' is none of")],
)
def test_bad_settings_of_a_sampler_are_told_before_anything_is_written(setting, message, tiny_prior, tmp_path):
    sampler = f"{{target: {POLYAK}, steps: 3, zeta: 0.5, {setting}}}"
    with pytest.raises(UserError, match=message):
        sweep(experiment(tiny_prior, tmp_path / "runs", f"sampler={sampler}"))
    assert not (tmp_path / "runs").exists()


def test_an_experiment_to_train_is_no_sweep(tmp_path):
    training = load_config(EXPERIMENTS / "dit.yaml", [f"runs_dir={tmp_path / 'runs'}"])
    with pytest.raises(UserError, match="degradation: is missing; is this an experiment to train"):
        sweep(training)
    assert not (tmp_path / "runs").exists()


def test_what_is_no_sampler_is_told(tiny_prior, tmp_path):
    unguided = "sampler={target: vsr_lightning.inference.ancestral.ancestral_sample}"
    with pytest.raises(UserError, match="ancestral: target: cannot be called as a sampler"):
        sweep(experiment(tiny_prior, tmp_path / "runs", unguided, "grid.steps=[2]", "grid.zeta=[1]"))
    assert not (tmp_path / "runs").exists()
