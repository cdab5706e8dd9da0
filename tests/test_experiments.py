"""Every shipped YAML loads, and everything that it names can be built."""

from inspect import signature
from pathlib import Path

import pytest
import yaml

from vsr_lightning.conditions import widths
from vsr_lightning.config import load_config
from vsr_lightning.data.clips import ClipDataModule
from vsr_lightning.evaluation.grid import degradations, grid_items, sampler_sections
from vsr_lightning.inference.dps_restart import descents, dps_restart_sample
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.vae import VAE
from vsr_lightning.targets import build

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FILES = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if EXPERIMENTS / "results" not in path.parents)
SIZE = 64  # pixels


@pytest.fixture(params=FILES, ids=lambda path: path.relative_to(EXPERIMENTS).as_posix())
def path(request):
    return request.param


def test_opens_with_a_comment(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 10


def test_networks_and_data_build(path):
    experiment = load_config(path)
    if experiment.data:
        assert isinstance(build({"seed": 0, **experiment.data}, "data"), ClipDataModule)
    if experiment.vae:
        assert isinstance(build(experiment.vae, "vae"), VAE)
    if experiment.dit:
        schedule = build(experiment.schedule, "schedule")
        vae = VAE(latent_channels=experiment.dit["latent_channels"])
        frames, _, height, width = Prior(vae, build(experiment.dit, "dit"), schedule).video_shape
        assert (frames, height, width) == (experiment.data["num_frames"], SIZE, SIZE)
        schedule.respaced(experiment.training.check_steps)


def check_steps(schedule, sampler, steps):
    """The schedule has the steps that a sampler takes: in each descent, if it has several."""
    if sampler.func is dps_restart_sample:
        settings = {key: value.default for key, value in signature(dps_restart_sample).parameters.items()}
        settings |= sampler.keywords
        descents(schedule, steps, settings["start"], settings["restarts"], settings["low"])
    else:
        schedule.respaced(steps)


def test_sampling_builds_with_and_without_gpu(path):
    for overrides in ([], load_config(path).without_gpu):
        experiment = load_config(path, overrides)
        if experiment.degradation:
            degradation = build(experiment.degradation, "degradation")
            for variant in degradations(experiment.grid, degradation):
                sigma_h = widths(experiment.grid, variant.factor, variant.kernel)
                operator = variant.operator(sigma_h, SIZE, SIZE)
                assert operator.A_v.shape == (len(sigma_h), SIZE // variant.factor, SIZE)
        samplers = sampler_sections(experiment) if experiment.sampler or experiment.grid.sampler else {}
        for section in samplers.values():
            assert callable(build(section, "sampler"))
        for target in experiment.figures:
            assert callable(build({"target": target}, "figures", run_dir=path))
        if samplers and experiment.data:
            schedule = build(experiment.schedule, "schedule")
            for name, steps in {
                (item.sampler, item.steps) for item in grid_items(experiment.grid, samplers, degradation)
            }:
                check_steps(schedule, build(samplers[name], "sampler"), steps)
            assert max(experiment.grid.num_frames) <= experiment.data["num_frames"]


@pytest.mark.parametrize("name", ["sweep_frames", "sweep_aliasing"])
def test_small_presets_sample_as_dps_restart_100(name):
    path = EXPERIMENTS / "moving_mnist" / f"{name}.yaml"
    small = load_config(path, load_config(path).without_gpu).sampler
    assert small == yaml.safe_load((EXPERIMENTS / "sampler" / "dps_restart_100.yaml").read_text())["sampler"]
