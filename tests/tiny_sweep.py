"""A frame-count sweep that takes seconds: 2 videos x 2 noise instances x 2 numbers of frames, 8 items, 3 a batch."""

import json
from pathlib import Path

import pytest

from vsr_lightning.config import load_config
from vsr_lightning.evaluation import results

ITEMS = 8
SWEEP = Path(__file__).parents[1] / "experiments" / "moving_mnist" / "sweep_frames.yaml"
TINY = [
    *("data.digits=embedded", "data.test_videos=2", "sampler.steps=3", "sampler.zeta=0.5", "sampler.restarts=[0.5]"),
    *("grid.videos=2", "grid.noises=2", "grid.num_frames=[1,3]", "grid.order=[random]"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.progress=false", "trainer.batch_size=3"),
    "figures=[]",  # they would take longer than the restorations
]
FIGURES = "figures=[vsr_lightning.figures.frame_count.make_figures]"


def experiment(prior, runs_dir, *overrides):
    return load_config(SWEEP, [*TINY, f"prior={prior}", f"runs_dir={runs_dir}", *overrides])


def rows_by_item(folder):
    return {results.item_key(row): row for row in results.read_table(folder / "results.csv")}


def written_rows(folder):
    """All that were ever written, the failed and the repeated too."""
    return [json.loads(line) for path in folder.glob("rows/*.jsonl") for line in path.read_text().splitlines()]


def assert_same_rows(found, expected, tolerance=0.05):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key]["status"] == row["status"] == "ok"
        for column in ("psnr_first", "psnr_mean", "psnr_first_vae", "psnr_first_bicubic"):
            assert found[key][column] == pytest.approx(row[column], abs=tolerance), (key, column)
        assert found[key]["ssim_mean"] == pytest.approx(row["ssim_mean"], abs=1e-3)
