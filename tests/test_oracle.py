"""The oracle command: a summary as a sweep's, in which more frames and known motion help."""

import json
from pathlib import Path

import pytest
import torch

from vsr_lightning.__main__ import main
from vsr_lightning.conditions import Item
from vsr_lightning.config import load_config, to_yaml
from vsr_lightning.data.clips import stack
from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation.oracle import oracle, restore
from vsr_lightning.evaluation.results import read_table
from vsr_lightning.metrics import psnr

SWEEP = Path(__file__).parents[1] / "experiments" / "moving_mnist" / "sweep_frames.yaml"
TINY = [
    *("data.digits=embedded", "data.test_videos=2", "grid.videos=2", "grid.noises=2"),
    *("grid.num_frames=[1,10]", "grid.order=[sequential]"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    path = oracle(load_config(SWEEP, [*TINY, f"runs_dir={runs}", "grid.steps=[10,20]"]))
    assert path == runs / "frame_count" / "oracle.csv"
    assert {"command", "git", "versions"} <= json.loads((path.parent / "oracle.json").read_text()).keys()
    return read_table(path)


def test_a_line_for_each_condition_whatever_the_samplers(table):
    assert [(line["num_frames"], line["n"]) for line in table] == [(1, 4), (10, 4)]
    assert {line["sampler"] for line in table} == {"known_motion"}
    assert {line["dataset"] for line in table} == {"moving_mnist embedded test"}
    assert all(line["psnr_first_se"] > 0 for line in table)


def test_more_frames_help_and_so_does_the_mean(table):
    few, many = table
    assert many["psnr_first"] > few["psnr_first"] + 3
    for line in table:
        assert line["psnr_first_of_mean"] > line["psnr_first"]


def test_it_beats_black_frames_by_far(table):
    video = stack(MovingMNIST(batch_size=1, digits="embedded", test_videos=2).test_clips(), range(2))
    black = psnr(torch.full_like(video, -1.0), video)[:, 0].mean().item()
    assert table[1]["psnr_first"] > black + 5


def test_without_sensor_noise(tmp_path):
    overrides = [*TINY, f"runs_dir={tmp_path}", "grid.sigma_y=[0.0]", "grid.videos=1", "grid.noises=1"]
    few, many = read_table(oracle(load_config(SWEEP, overrides)))
    assert many["psnr_first"] > few["psnr_first"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.observe=reconstruction", "grid.observe"),
        ("grid.videos=3", "grid.videos: 3 asked for, the test split has 2"),
        ("grid.num_frames=[11]", "grid.num_frames=11"),
    ],
)
def test_bad_input_is_told_before_minutes_of_work(override, message, tmp_path, monkeypatch):
    monkeypatch.delattr("vsr_lightning.evaluation.oracle.fit_digits")
    with pytest.raises(UserError, match=message):
        oracle(load_config(SWEEP, [*TINY, f"runs_dir={tmp_path}", override]))
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_sweep_is_left_alone(tmp_path):
    folder = tmp_path / "frame_count"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load_config(SWEEP, [*TINY, "grid.noises=1"])))
    with pytest.raises(UserError, match="holds a run with another grid.noises"):
        oracle(load_config(SWEEP, [*TINY, f"runs_dir={tmp_path}"]))


def test_clips_of_unknown_motion_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MovingMNIST, "test_clips", lambda self: [torch.zeros(10, 64, 64, 1, dtype=torch.uint8)])
    arguments = [*TINY, f"runs_dir={tmp_path}"]
    with pytest.raises(UserError, match="the motion in moving_mnist embedded test is not known"):
        oracle(load_config(SWEEP, arguments))
    assert main(["oracle", str(SWEEP), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_it_is_told_the_noise_and_the_motion_of_the_clip(monkeypatch):
    """On [0, 1], half of what it is on [-1, 1]: y must lie about the truth's own degradation by that much."""
    heard = []

    def listen(y, A, corners, frames, sigma, mixture, generator):
        heard.append((y, A, corners, frames, sigma))
        return torch.zeros(10, 64, 64, dtype=torch.float64)

    monkeypatch.setattr("vsr_lightning.evaluation.oracle.sample_with_known_motion", listen)
    clips = MovingMNIST(batch_size=1, digits="embedded", test_videos=2).test_clips()
    item = Item(8, "gaussian", 3, "sequential", 2.0, 0.2, "known_motion", 0, 0.0, video=1, noise=0)
    restore(item, clips, Downsample(), None, seed=0)
    ((y, (A_v, A_h), corners, frames, sigma),) = heard
    clean = A_v @ (clips[1][..., 0].double() / 255) @ A_h.T
    assert sigma == pytest.approx(0.1)
    assert (y - clean)[:3].std().item() == pytest.approx(sigma, rel=0.2)  # 192 numbers
    assert frames == [0, 1, 2]
    assert corners.tolist() == clips.corners(1).tolist()
