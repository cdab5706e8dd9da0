"""A sweep's results in Weights & Biases: a run is read back from disk, and each go logs only news."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from result_rows import clip, item

from vsr_lightning.evaluation import wandb_run
from vsr_lightning.evaluation.results import COLUMNS, RowWriter, read_table, write_tables
from vsr_lightning.evaluation.videos import Clip, ClipWriter, merge_clips
from vsr_lightning.evaluation.wandb_run import ResultsLog, log_curves, log_results
from vsr_lightning.experiment import Experiment, Logging


class FakeRun:
    """Remembers what is logged."""

    def __init__(self):
        self.logged, self.steps, self.summary = {}, {}, {}

    def define_metric(self, name, step_metric=None):
        self.steps[name] = step_metric

    def log(self, values):
        self.logged.update(values)


@pytest.fixture
def offline_run(tmp_path, monkeypatch):
    """A W&B run that stays in `tmp_path`, its default step metric defined as WandbLogger does."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name.lower()))
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    run = wandb.init(project="test", dir=tmp_path / "wandb-files", settings=settings)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    yield run
    run.finish()


def records_of(run):
    """All records of a finished offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(Path(run.dir).parent)]
    return [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]


def test_log_results_can_be_read_back(tmp_path, offline_run):
    run_dir = tmp_path / "run"
    items = [
        item(video, num_frames=n, order=order, psnr=20 + n + video + 2 * (order == "random"))
        for n in (1, 3, 10)
        for order in ("sequential", "random")
        for video in (0, 1)
        if (n, order) != (1, "random")
    ]
    RowWriter(run_dir).append(items)
    write_tables(run_dir)
    other = {name: 255 - array for name, array in clip().items() if name != "frames"} | {"frames": clip()["frames"]}
    ClipWriter(run_dir).append([Clip(items[0], **clip()), Clip(items[2], **other)])
    merge_clips(run_dir)
    figure = run_dir / "fig3.png"
    Image.new("RGB", (30, 20), "red").save(figure)

    (run_dir / "table1.csv").write_text("method,psnr,ssim\nours,21.5,0.9\nquoted,n/a,\n")

    ResultsLog(Experiment(), run_dir, [figure], complete=True).write_to(offline_run)
    offline_run.finish()

    records = records_of(offline_run)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    step = "frame_count/num_frames"

    def curve(name):
        return {row[step]: row[name] for row in history if name in row}

    assert curve("frame_count/sequential/psnr_first") == {1: 21.5, 3: 23.5, 10: 30.5}
    assert curve("frame_count/random/psnr_first") == {3: 25.5, 10: 32.5}
    assert curve("frame_count/random/ssim_mean") == pytest.approx({3: 0.9, 10: 0.9})
    steps = {r["metric"].get("name"): r["metric"].get("step_metric") for r in records if r["type"] == "metric"}
    assert steps["frame_count/sequential/psnr_first"] == step

    media = Path(offline_run.dir) / "media"
    (table,) = media.glob("table/tables/results_*.table.json")
    raw = json.loads(table.read_text())
    assert raw["columns"] == list(COLUMNS)
    assert len(raw["data"]) == len(items)
    (summary,) = media.glob("table/tables/summary_*.table.json")
    assert len(json.loads(summary.read_text())["data"]) == 5
    (image,) = media.glob("images/figures/fig3_*.png")
    assert Image.open(image).size == (30, 20)
    gifs = [Image.open(path) for path in media.glob("videos/clips/restored_*.gif")]
    assert [gif.format for gif in gifs] == ["GIF", "GIF"]
    first, second = (np.asarray(gif.convert("L")) for gif in gifs)
    assert not np.array_equal(first, second)  # each its own clip's
    (table1,) = media.glob("table/tables/table1_*.table.json")
    assert json.loads(table1.read_text())["data"] == [["ours", "21.5", 0.9], ["quoted", "n/a", None]]

    (speed,) = (
        record["summary"]["update"]["speed/sample_steps_per_s"]
        for record in records
        if record["type"] == "summary" and "speed/sample_steps_per_s" in record["summary"]["update"]
    )
    assert speed == pytest.approx(items[0]["steps"] / items[0]["seconds"])


def test_a_table_may_have_gaps(tmp_path):
    """Empty cells in one column, and nan in another, which W&B takes for one."""
    failed = item(1, psnr_first_vae=20.0, temporal_error=math.nan, status="failed")
    RowWriter(tmp_path).append([item(0, temporal_error=0.1), failed])
    write_tables(tmp_path)
    run = FakeRun()
    log_results(run, tmp_path, [])
    columns = {name: run.logged["tables/results"].get_column(name) for name in ("psnr_first_vae", "temporal_error")}
    assert repr(columns) == "{'psnr_first_vae': [None, 20.0], 'temporal_error': [0.1, nan]}"


def test_clips_have_captions_that_tell_them_apart(tmp_path):
    for video in (0, 3):
        ClipWriter(tmp_path).append([Clip(item(video), **clip())])
    merge_clips(tmp_path)
    RowWriter(tmp_path).append([item(video) for video in (0, 3)])
    write_tables(tmp_path)
    run = FakeRun()
    log_results(run, tmp_path, [])
    captions = [video._caption for video in run.logged["clips/restored"]]
    assert captions == ["sequential, frames: 3, video 0", "sequential, frames: 3, video 3"]


def test_a_gap_in_a_column_of_texts_stays_one():
    table = wandb_run._wandb_table([{"kernel": "box"}, {"kernel": None}, {"kernel": 2}])
    assert table.get_column("kernel") == ["box", None, "2"]


def test_a_clip_that_cannot_be_written_is_no_silent_loss(tmp_path, monkeypatch):
    def fail(clip, path):
        raise OSError("no space")

    monkeypatch.setattr(wandb_run, "write_gif", fail)
    ClipWriter(tmp_path).append([Clip(item(), **clip())])
    merge_clips(tmp_path)
    RowWriter(tmp_path).append([item()])
    write_tables(tmp_path)
    with pytest.raises(OSError, match="no space"):
        log_results(FakeRun(), tmp_path, [])


def test_curves_of_several_settings_have_names_of_their_own(tmp_path):
    RowWriter(tmp_path).append([item(sigma_h=sigma_h, prior=prior) for sigma_h in (0, 4) for prior in ("a/b", "c/b")])
    write_tables(tmp_path)
    run = FakeRun()
    log_curves(run, read_table(tmp_path / "summary.csv"))
    curves = [name for name in run.logged if name.endswith("/psnr_first")]
    assert sorted(curves) == [
        f"frame_count/sigma_h={sigma_h}/prior={prior}/sequential/psnr_first"
        for sigma_h in (0, 4)
        for prior in ("a_b", "c_b")
    ]
    assert {run.steps[name] for name in curves} == {"frame_count/num_frames"}


def test_speed_counts_what_was_restored(tmp_path):
    items = [item(0, steps=10, seconds=1), item(1, steps=30, seconds=4), item(2, steps=999, status="nan")]
    RowWriter(tmp_path).append(items)
    write_tables(tmp_path)
    run = FakeRun()
    log_results(run, tmp_path, [])
    assert run.summary == {"speed/sample_steps_per_s": 8, "speed/seconds_per_restoration": 2.5}


def log_news(run_dir, complete, project="ours"):
    """What one go of a sweep logs, by the first part of its names."""
    log, run = ResultsLog(Experiment(logging=Logging(project=project)), run_dir, [], complete), FakeRun()
    assert log.has_news == (log.new_results or log.new_curves)
    log.write_to(run)
    log.remember()
    return {name.split("/")[0] for name in run.logged}


def test_a_go_logs_only_news_and_curves_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = RowWriter(tmp_path)

    def measure(number):
        rows.append([item(number)])
        write_tables(tmp_path)

    measure(0)
    assert log_news(tmp_path, False) == {"tables"}
    assert log_news(tmp_path, False) == set()
    measure(1)
    assert log_news(tmp_path, True) == {"tables", "frame_count"}
    assert log_news(tmp_path, True) == set()
    measure(2)  # a failed one, tried again
    assert log_news(tmp_path, True) == {"tables"}
    assert log_news(tmp_path, True, project="another") == {"tables", "frame_count"}
    (tmp_path / "wandb" / "logged.json").write_text("[")
    assert log_news(tmp_path, True) == {"tables", "frame_count"}


def test_without_remembering_all_stays_news(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    RowWriter(tmp_path).append([item()])
    write_tables(tmp_path)
    for _ in range(2):
        log = ResultsLog(Experiment(), tmp_path, [], complete=True)
        assert (log.new_results, log.new_curves) == (True, True)
        log.write_to(FakeRun())
