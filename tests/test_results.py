"""Rows survive crashes and reruns; tables hold hand-computed numbers; a W&B run is read back from disk."""

import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from result_rows import SETTING, item, mean_of

from vsr_lightning.config import Experiment, Logging, UserError
from vsr_lightning.evaluation.results import (
    COLUMNS,
    CONDITION,
    RowWriter,
    column_mean,
    item_key,
    measured_columns,
    read_rows,
    read_table,
    write_means,
    write_tables,
)
from vsr_lightning.evaluation.videos import ClipWriter, merge_clips, read_clips, write_gif
from vsr_lightning.evaluation.wandb_run import ResultsLog, log_curves, log_results
from vsr_lightning.figures import reading
from vsr_lightning.files import SEAL_SIZE, DamagedFile


def clip(value=0, frames=10, size=16):
    """Arguments of ClipWriter.append after the row; the restored clip has the one value given."""
    truth = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.ones((size, size, 1), np.uint8)
    return {
        "observed": truth[:, ::8, ::8] + 100,
        "restored": np.full_like(truth, value),
        "truth": truth,
        "frames": [0, 2],
    }


# ---------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "same",
    [
        {"sigma_h": 2},
        {"sigma_h": "2.0", "steps": "250", "zeta": "1"},
        {"sigma_y": np.float32(0.02), "factor": np.int64(8)},
        {"psnr_first": 3.0, "seconds": 99, "psnr_first_bicubic": 1.0, "status": "non-finite at step 3"},
    ],
)
def test_item_key_is_normalised(same):
    assert item_key(item() | same) == item_key(item())


@pytest.mark.parametrize("column", [*CONDITION, "video", "noise"])
def test_item_key_tells_items_apart(column):
    assert item_key(item() | {column: 7}) != item_key(item())


def test_item_key_survives_json_and_csv(tmp_path):
    row = item(zeta=0.1 + 0.2, sigma_h=math.nan, seed=2**40 + 1, order=None)
    RowWriter(tmp_path).append([row])
    write_tables(tmp_path)
    (from_json,), (from_csv,) = read_rows(tmp_path), read_table(tmp_path / "results.csv")
    assert item_key(row) == item_key(from_json) == item_key(from_csv)
    assert item_key(row) != item_key(row | {"seed": 2**40 + 2})


# ---------------------------------------------------------------------------------------------- rows


def test_rows_of_all_ranks_are_read(tmp_path):
    RowWriter(tmp_path, rank=0).append([item(video=0), item(video=1)])
    RowWriter(tmp_path, rank=1).append([item(video=2, psnr=np.float32(21.5), prior=Path("a/b"))])
    rows = read_rows(tmp_path)
    assert [row["video"] for row in rows] == [0, 1, 2]
    assert rows[0] == item(video=0)
    assert (rows[2]["psnr_first"], rows[2]["prior"]) == (21.5, "a/b")


@pytest.mark.parametrize("torn", ['{"video": 1, "noi', '{"video": 1, "noise": 0}', "\0\0\0"])
def test_torn_line_is_ignored_and_repaired(tmp_path, torn):
    RowWriter(tmp_path).append([item(video=0)])
    path = tmp_path / "rows" / "rank-0.jsonl"
    with path.open("a") as file:
        file.write(torn)
    assert [row["video"] for row in read_rows(tmp_path)] == [0]

    RowWriter(tmp_path).append([item(video=1), item(video=2)])
    assert read_rows(tmp_path) == [item(video=0), item(video=1), item(video=2)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_file_of_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "rows" / "rank-0.jsonl"
    path.parent.mkdir()
    path.write_text('{"video"')
    RowWriter(tmp_path)
    assert path.read_text() == ""


@pytest.mark.parametrize("damage", ["{broken", "[1, 2]", "3", '{"video": 0}'])
def test_damaged_line_is_named(tmp_path, damage):
    writer = RowWriter(tmp_path)
    writer.append([item()])
    with writer.path.open("a") as file:
        file.write(damage + "\n")
    writer.append([item(video=1)])
    with pytest.raises(UserError, match=r"rank-0\.jsonl: line 2 "):
        read_rows(tmp_path)


def test_rows_are_on_disk_when_the_process_is_killed(tmp_path):
    code = f"""
import os
from vsr_lightning.evaluation.results import RowWriter
writer = RowWriter({str(tmp_path)!r}, rank=3)
writer.append([dict(video=0, status="ok"), dict(video=1, status="ok")])
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False)
    assert [row["video"] for row in read_rows(tmp_path)] == [0, 1]


def test_duplicates_keep_the_first_unless_it_failed(tmp_path):
    failed = {"status": "non-finite at step 17"}
    RowWriter(tmp_path, rank=0).append([item(psnr=20), item(psnr=30), item(video=1, psnr=math.nan) | failed])
    RowWriter(tmp_path, rank=1).append(
        [item(psnr=40) | failed, item(video=1, psnr=25), item(video=1, psnr=26), item(video=2) | failed]
    )
    rows = {row["video"]: row for row in read_rows(tmp_path)}
    assert {video: row["psnr_first"] for video, row in rows.items()} == {0: 20, 1: 25, 2: 20}
    assert rows[2]["status"] == "non-finite at step 17"


def test_an_empty_run_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []
    write_tables(tmp_path)
    assert read_table(tmp_path / "results.csv") == read_table(tmp_path / "summary.csv") == []


# -------------------------------------------------------------------------------------------- tables


def test_results_table_is_sorted_in_the_contracts_columns(tmp_path):
    RowWriter(tmp_path).append([item(video=v, num_frames=n, psnr_first_bicubic=12.5) for n in (10, 2) for v in (1, 0)])
    write_tables(tmp_path)
    rows = read_table(tmp_path / "results.csv")
    assert list(rows[0]) == [*COLUMNS, "psnr_first_bicubic"]
    assert [(row["num_frames"], row["video"]) for row in rows] == [(2, 0), (2, 1), (10, 0), (10, 1)]
    assert rows[0] == item(num_frames=2, psnr_first_bicubic=12.5)


def test_tables_spell_a_condition_in_one_way(tmp_path):
    RowWriter(tmp_path).append(
        [item(0), item(1, sigma_h=2, zeta="1"), item(2, sigma_y=float(np.float32(0.02)), seed="0")]
    )
    write_tables(tmp_path)
    _, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert {line.split(",", maxsplit=1)[1] for line in lines} == {lines[0].split(",", maxsplit=1)[1]}
    assert [row["n"] for row in read_table(tmp_path / "summary.csv")] == [3]


def test_summary_averages_over_videos(tmp_path):
    # Per-video means 21, 24, 30 from unequal numbers of noise instances: mean 25, squared deviations
    # 16 + 1 + 25 = 42, deviation sqrt(21), standard error sqrt(21 / 3) = sqrt(7).
    values = {0: [20, 22], 1: [24, 23, 25], 2: [30]}
    rows = [item(v, noise, psnr=psnr) for v, group in values.items() for noise, psnr in enumerate(group)]
    RowWriter(tmp_path).append([*rows, item(num_frames=5, psnr=26)])
    write_tables(tmp_path)
    three, five = read_table(tmp_path / "summary.csv")
    assert {column: three[column] for column in SETTING} == SETTING
    assert (three["num_frames"], three["n"], three["failed"]) == (3, 6, 0)
    assert three["psnr_first"] == pytest.approx(25)
    assert three["psnr_first_se"] == pytest.approx(math.sqrt(7))
    assert three["psnr_mean"] == pytest.approx(24)
    assert three["seconds_se"] == 0
    assert (five["n"], five["psnr_first"], five["psnr_first_se"]) == (1, 26, None)
    assert "seed_se" not in three
    assert "video" not in three


def test_failed_rows_are_kept_counted_and_not_averaged(tmp_path):
    failure = {"status": "non-finite at step 17"}
    RowWriter(tmp_path).append(
        [
            item(video=0, psnr=20),
            item(video=1, psnr=math.nan) | failure,
            item(video=2, psnr=22),
            item(num_frames=5) | failure | {"psnr_first": None},
        ]
    )
    write_tables(tmp_path)
    assert [row["status"] for row in read_table(tmp_path / "results.csv")].count(failure["status"]) == 2
    three, five = read_table(tmp_path / "summary.csv")
    assert (three["n"], three["failed"], three["psnr_first"], three["psnr_first_se"]) == (2, 1, 21, 1)
    assert (five["n"], five["failed"], five["psnr_first"]) == (0, 1, None)


def test_measured_columns_are_numbers_outside_the_key():
    row = item(psnr_first_bicubic=12.0, noise_seed=5, comment="a", half=1.0)
    assert measured_columns([row, item(half="b"), item(psnr_first_bicubic=None)]) == [
        *("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seconds"),
        "psnr_first_bicubic",
    ]


def test_column_mean_of_nothing():
    assert column_mean([], "psnr_first") == (None, None)
    assert column_mean([{"video": 0, "psnr_first": None}], "psnr_first") == (None, None)


def test_means_of_samples_join_the_summary(tmp_path):
    def mean_row(video, psnr, n_samples=10):
        return mean_of(item(video), n_samples, psnr_first_of_mean=psnr, psnr_mean_of_mean=psnr - 2)

    RowWriter(tmp_path).append([item(v, num_frames=n) for v in (0, 1) for n in (3, 5)])
    write_means(tmp_path, [mean_row(0, 99.0), mean_row(1, 27.0)])
    write_means(tmp_path, [mean_row(0, 23.0)])  # measured again
    write_means(tmp_path, [mean_row(1, 98.0, n_samples=9)])  # of what was left
    assert [row["psnr_first_of_mean"] for row in read_table(tmp_path / "means.csv")] == [23.0, 27.0]

    write_tables(tmp_path)
    three, five = read_table(tmp_path / "summary.csv")
    assert (three["psnr_first_of_mean"], three["psnr_first_of_mean_se"]) == (25, pytest.approx(2))
    assert (three["psnr_mean_of_mean"], three["n_samples"]) == (23, 10)
    assert (five["psnr_first_of_mean"], five["psnr_first"]) == (None, 20)


def test_writing_tables_again_changes_nothing_and_leaves_no_temporary_file(tmp_path):
    RowWriter(tmp_path).append([item(v, noise) for v in (0, 1) for noise in (0, 1)])
    write_tables(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("results.csv", "summary.csv")}
    RowWriter(tmp_path, rank=1).append([item(0, 0, psnr=50)])  # a rerun that measures an item once more
    write_tables(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "rows", "summary.csv"]


# --------------------------------------------------------------------------------------------- clips


def test_clips_of_all_ranks_are_merged_and_read_back(tmp_path):
    ClipWriter(tmp_path, rank=0).append(item(num_frames=10), **clip(1))
    ClipWriter(tmp_path, rank=0).append(item(num_frames=3), **clip(2))
    ClipWriter(tmp_path, rank=1).append(item(num_frames=3, order="random"), **clip(3))
    merge_clips(tmp_path)
    merge_clips(tmp_path)
    clips = read_clips(tmp_path)
    assert [(c["num_frames"], c["order"], c["restored"][0, 0, 0, 0]) for c in clips] == [
        *[(3, "random", 3), (3, "sequential", 2), (10, "sequential", 1)]
    ]
    assert {column: clips[0][column] for column in SETTING} == SETTING
    assert clips[0]["frames"] == [0, 2]
    for name in ("observed", "truth"):
        assert clips[0][name].dtype == np.uint8
        np.testing.assert_array_equal(clips[0][name], clip()[name])


def test_clips_of_several_videos_and_the_baseline(tmp_path):
    baseline = np.full((10, 16, 16, 1), 7, np.uint8)
    for video in (2, 0):
        ClipWriter(tmp_path).append(item(video), **clip(video), bicubic=baseline + video)
    ClipWriter(tmp_path).append(item(1), **clip(1))
    merge_clips(tmp_path)
    clips = read_clips(tmp_path)
    assert [(c["video"], c["restored"].max()) for c in clips] == [(0, 0), (1, 1), (2, 2)]
    assert [c["bicubic"].max() if "bicubic" in c else None for c in clips] == [7, None, 9]


def test_a_rerun_adds_and_replaces_clips_and_keeps_the_others(tmp_path):
    ClipWriter(tmp_path).append(item(num_frames=1), **clip(1))
    ClipWriter(tmp_path).append(item(num_frames=3), **clip(2))
    merge_clips(tmp_path)
    (tmp_path / "rows" / "clips-rank-0.h5").unlink()
    ClipWriter(tmp_path).append(item(num_frames=3), **clip(20))
    ClipWriter(tmp_path).append(item(num_frames=3.0), **clip(30))
    ClipWriter(tmp_path).append(item(num_frames=5), **clip(4))
    merge_clips(tmp_path)
    restored = {c["num_frames"]: c["restored"].max() for c in read_clips(tmp_path)}
    assert restored == {1: 1, 3: 30, 5: 4}


def test_a_writer_killed_midway_leaves_the_clips_readable(tmp_path):
    writer = ClipWriter(tmp_path)
    writer.append(item(num_frames=1), **clip(1))
    writer.path.with_name(writer.path.name + ".tmp").write_bytes(b"half a file")
    ClipWriter(tmp_path).append(item(num_frames=2), **clip(2))
    merge_clips(tmp_path)
    assert [c["num_frames"] for c in read_clips(tmp_path)] == [1, 2]


def test_damaged_clips_do_not_last(tmp_path):
    gathered = tmp_path / "clips.h5"
    gathered.write_bytes(b"damaged")
    merge_clips(tmp_path)
    assert not gathered.exists()
    for video, rank in ((0, 0), (1, 1)):
        ClipWriter(tmp_path, rank).append(item(video), **clip(video))
    (tmp_path / "rows" / "clips-rank-0.h5").write_bytes(b"damaged")
    gathered.write_bytes(b"damaged")
    merge_clips(tmp_path)
    assert [c["video"] for c in read_clips(tmp_path)] == [1]
    ClipWriter(tmp_path, rank=0).append(item(2), **clip(2))
    merge_clips(tmp_path)
    assert [c["video"] for c in read_clips(tmp_path)] == [1, 2]


def remove_seal(path):
    """Make of a file of clips what versions before the seal wrote."""
    with h5py.File(path) as sealed, h5py.File(path.with_suffix(".old"), "w") as plain:
        for name in sealed:
            sealed.copy(name, plain)
    path.with_suffix(".old").replace(path)


def test_clips_without_a_seal_are_read_and_go_on(tmp_path):
    writer = ClipWriter(tmp_path)
    writer.append(item(0), **clip(1))
    remove_seal(writer.path)
    ClipWriter(tmp_path).append(item(1), **clip(2))
    merge_clips(tmp_path)
    assert [(c["video"], c["restored"].max()) for c in read_clips(tmp_path)] == [(0, 1), (1, 2)]


def test_damage_is_noticed_wherever_it_is(tmp_path):
    """Without a seal, HDF5 reads on past some of it, and never returns from some."""
    ClipWriter(tmp_path).append(item(0), **clip())
    merge_clips(tmp_path)
    path = tmp_path / "clips.h5"
    whole = path.read_bytes()
    for start in range(SEAL_SIZE, len(whole) - 64, 397):
        for size in (1, 64):
            damaged = bytearray(whole)
            damaged[start : start + size] = bytes(255 - byte for byte in whole[start : start + size])
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile):
                read_clips(tmp_path)
            with pytest.raises(DamagedFile):
                reading.read_clips(path)
    path.write_bytes(whole)
    assert len(read_clips(tmp_path)) == len(reading.read_clips(path)) == 1


@pytest.mark.parametrize("change", ["sigma_h", "video", "truth", "frames"])
def test_clips_that_are_not_what_was_written(tmp_path, change):
    """In an older file, without a seal, a flipped bit can leave this: HDF5 itself sees nothing wrong."""
    ClipWriter(tmp_path).append(item(0), **clip())
    merge_clips(tmp_path)
    remove_seal(tmp_path / "clips.h5")
    read_clips(tmp_path)
    with h5py.File(tmp_path / "clips.h5", "a") as file:
        (group,) = file.values()
        if change in group:
            del group[change]
        else:
            group.attrs[change] = 7
    with pytest.raises(DamagedFile, match=r"clips\.h5"):
        read_clips(tmp_path)


def test_no_clips_make_no_file(tmp_path):
    merge_clips(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_float_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="restored must be uint8"):
        ClipWriter(tmp_path).append(item(), **(clip() | {"restored": np.zeros((10, 16, 16, 1))}))


def test_gif_shows_observed_restored_truth(tmp_path):
    frames = 3
    truth = np.zeros((frames, 64, 64, 1), np.uint8)
    truth[1] = 200
    observed = np.full((frames, 8, 8, 1), 90, np.uint8)
    restored = np.full_like(truth, 30) + np.arange(frames, dtype=np.uint8)[:, None, None, None] * 20
    path = tmp_path / "clip.gif"
    write_gif({"observed": observed, "restored": restored, "truth": truth, "frames": [0, 2]}, path)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (frames, (3 * 192 + 8, 192))
        shown = []
        for index in range(frames):
            gif.seek(index)
            picture = np.asarray(gif.convert("L"), dtype=int)
            shown.append([picture[96, x] for x in (96, 192 + 4 + 96, 2 * (192 + 4) + 96)])
    # The second frame was not observed: black on the left.
    np.testing.assert_allclose(shown, [[90, 30, 0], [0, 50, 200], [90, 70, 0]], atol=2)


# --------------------------------------------------------------------------------- Weights & Biases


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
    ClipWriter(run_dir).append(items[0], **clip())
    merge_clips(run_dir)
    figure = run_dir / "fig3.png"
    Image.new("RGB", (30, 20), "red").save(figure)

    (run_dir / "table1.csv").write_text("method,psnr\nours,21.5\nquoted,n/a\n")

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
    (gif,) = media.glob("videos/clips/restored_*.gif")
    assert Image.open(gif).format == "GIF"
    (table1,) = media.glob("table/tables/table1_*.table.json")
    assert json.loads(table1.read_text())["data"] == [["ours", "21.5"], ["quoted", "n/a"]]

    (speed,) = (
        record["summary"]["update"]["speed/sample_steps_per_s"]
        for record in records
        if record["type"] == "summary" and "speed/sample_steps_per_s" in record["summary"]["update"]
    )
    assert speed == pytest.approx(items[0]["steps"] / items[0]["seconds"])


def test_clips_have_captions_that_tell_them_apart(tmp_path):
    for video in (0, 3):
        ClipWriter(tmp_path).append(item(video), **clip())
    merge_clips(tmp_path)
    RowWriter(tmp_path).append([item(video) for video in (0, 3)])
    write_tables(tmp_path)
    run = FakeRun()
    log_results(run, tmp_path, [])
    captions = [video._caption for video in run.logged["clips/restored"]]
    assert captions == ["sequential, frames: 3, video 0", "sequential, frames: 3, video 3"]


class FakeRun:
    """Remembers what is logged."""

    def __init__(self):
        self.logged, self.steps, self.summary = {}, {}, {}

    def define_metric(self, name, step_metric=None):
        self.steps[name] = step_metric

    def log(self, values):
        self.logged.update(values)


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
