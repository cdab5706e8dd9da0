"""What the report says of a run: how much of its grid was restored, and with what."""

from pathlib import Path

import pytest
import yaml

from vsr_lightning.config import load_config, to_yaml
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.evaluation.grid import grid_items, sampler_sections
from vsr_lightning.figures.report_provenance import configured, grid_size, overview, provenance
from vsr_lightning.targets import build

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SWEEPS = (
    *("moving_mnist/sweep_frames", "moving_mnist/sweep_aliasing", "moving_mnist/sweep_guidance", "moving_mnist/tenth"),
    *("bair/eval", "push_sim/demo"),
)
TWO_NOISES = [{"video": video, "noise": noise, "status": "ok"} for video in (0, 1) for noise in (0, 1)]


def as_written(name, *overrides):
    """An experiment as a run folder's config.yaml holds it."""
    experiment = load_config(EXPERIMENTS / f"{name}.yaml", list(overrides))
    return experiment, yaml.safe_load(to_yaml(experiment))


@pytest.mark.parametrize("name", SWEEPS)
def test_the_grid_is_counted_as_the_sweep_lists_it(name):
    experiment, config = as_written(name)
    operator = build(experiment.degradation, "degradation", Downsample)
    assert grid_size(config) == len(grid_items(experiment.grid, sampler_sections(experiment), operator))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 8 * 10 * 20),
        ({"grid": {"of_a_later_version": [1, 2]}}, 8 * 10),  # all else is left out: one number of frames in one order
        ({"grid": {"sigma_h": [0.0, 1.0]}}, 8 * 10 * 2),
        ({"grid": {"sigma_h": [0.0, 1.0]}, "degradation": {"kernel": "box"}}, 8 * 10),
        ({"grid": {"sampler": ["a", "b"], "steps": [10, 20]}, "samplers": {}}, 8 * 10 * 2 * 2),
        ({"grid": {"order": ["backwards"]}}, None),  # no sweep takes it
    ],
)
def test_the_grid_of_any_config_is_counted(change, expected):
    _, config = as_written("moving_mnist/sweep_frames", "full=true")
    assert grid_size(config | change) == expected


def test_a_config_without_a_grid_says_nothing():
    assert grid_size({"name": "a"}) is None
    assert configured({"name": "a"}) == {}


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        (None, "4 restorations of 2 videos × 2 noise instances"),
        (4, "4 restorations of 2 videos × 2 noise instances"),
        (8, "4 of 8 restorations, of 2 videos × 2 noise instances"),
    ],
)
def test_an_unfinished_sweep_says_so(planned, expected):
    assert overview(TWO_NOISES, [], planned) == expected


def test_a_page_says_what_is_missing(report, run_copy):
    _, config = as_written(
        "moving_mnist/sweep_frames",
        "grid.videos=2",
        "grid.noises=2",
        "grid.num_frames=[1,2,10]",
        "sampler.temperature=0.25",
    )
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    page = report(run_copy)
    assert "8 of 24 restorations, of 3 videos × 1 noise instance; 1 failed" in page.text
    assert "temperature 0.25" in page.text


def test_a_note_stands_beside_what_it_is_about(tmp_path):
    meta = {"git": "01b7c42-dirty", "hardware": "H200", "note": "the code is that of a6e45e5"}
    facts = provenance(tmp_path, meta | {"resumed": [{"started": "later", **meta}]}, [])
    assert [*facts] == ["folder", "git", "note", "hardware", "resumed"]
    assert facts["note"] == "the code is that of a6e45e5"
    assert facts["resumed"] == "later (01b7c42-dirty, the code is that of a6e45e5, H200)"


def test_the_samplers_that_were_used():
    _, config = as_written("moving_mnist/tenth", "grid.sampler=[two_half,polyak_100]")
    facts = configured(config)
    assert [name for name in facts if "sampler" in name] == ["sampler two_half", "sampler polyak_100"]
    assert facts["sampler two_half"].startswith("dps_restart_sample: steps 100, zeta 0.5, restarts [0.6, 0.4], ")
    assert "temperature 0.5" in facts["sampler two_half"]
    assert facts["degradation"] == "Downsample: factor 8, kernel gaussian"
    assert facts["prior’s folder"] == config["prior"]


def test_lists_of_the_grid_stand_over_the_sections():
    _, config = as_written("moving_mnist/sweep_frames", "grid.steps=[5,6]", "grid.factor=[4,8]", "sampler.zeta=0.4")
    facts = configured(config)
    assert facts["degradation"] == "Downsample: kernel gaussian"
    assert facts["sampler’s parameters"].startswith("dps_restart_sample: zeta 0.4, restarts [")
