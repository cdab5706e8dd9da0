"""What figures read: rows that are ok, clips of this and earlier versions, means that count a video once."""

import math

import h5py
import numpy as np
import pytest
from damage import DAMAGES
from result_rows import item, mean_of

from vsr_lightning.conditions import CONDITION
from vsr_lightning.figures.reading import (
    curve,
    grouped,
    read_clips,
    read_means,
    read_ok_rows,
    read_oracle,
    read_table,
)
from vsr_lightning.files import DamagedFile

ITEM = item(temporal_error="")
MEAN = mean_of(ITEM, 10, psnr_first_of_mean=24.5)
CLIP = {column: ITEM[column] for column in CONDITION}


def write_table(path, *rows):
    lines = [rows[0], *(row.values() for row in rows)]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return path


def test_tables_are_read_as_text_and_failures_left_out(tmp_path):
    failed = ITEM | {"video": 1, "psnr_first": "", "status": "non-finite at step 3"}
    path = write_table(tmp_path / "results.csv", ITEM, failed)
    assert read_ok_rows(path) == [{column: str(value) for column, value in ITEM.items()}]
    assert len(read_table(path)) == 2
    assert read_means(write_table(tmp_path / "means.csv", MEAN))[0]["n_samples"] == "10"
    none = tmp_path / "none.csv"
    assert read_ok_rows(none) == read_means(none) == read_table(none) == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("read", "row"), [(read_table, ITEM), (read_ok_rows, ITEM), (read_means, MEAN)], ids=["table", "ok", "means"]
)
def test_a_damaged_table_is_named(tmp_path, read, row, damage):
    path = write_table(tmp_path / "table.csv", *[row] * 20)
    damage(path)
    with pytest.raises(DamagedFile, match=r"table\.csv: cannot be read .*; repeat the sweep's command"):
        read(path)


@pytest.mark.parametrize("column", ["video", "num_frames", "sigma_h", "kernel", "status", "psnr_first", "ssim_mean"])
def test_a_cell_or_a_column_that_is_not_what_was_written(tmp_path, column):
    """A flipped bit can leave the text and the table's form intact."""
    renamed = {("o" if name == column else "") + name: value for name, value in ITEM.items()}
    damaged = {"column": renamed, "cell": ITEM | {column: "1o"}}
    if column == "ssim_mean":  # older files may lack it
        del damaged["column"]
    if column in ("kernel", "status"):  # text, whatever it says
        del damaged["cell"]
    for name, row in damaged.items():
        with pytest.raises(DamagedFile, match=rf"{name}\.csv: cannot be read"):
            read_ok_rows(write_table(tmp_path / f"{name}.csv", row))


@pytest.mark.parametrize("column", ["num_frames", "order", "psnr_first"])
def test_a_damaged_oracle_is_named(tmp_path, column):
    condition = {name: value for name, value in ITEM.items() if name not in ("video", "noise", "status")}
    assert read_oracle(write_table(tmp_path / "whole.csv", condition))[0]["order"] == condition["order"]
    damaged = {("o" if name == column else "") + name: value for name, value in condition.items()}
    with pytest.raises(DamagedFile, match=r"oracle\.csv: cannot be read .*; repeat the oracle's command"):
        read_oracle(write_table(tmp_path / "oracle.csv", damaged))
    assert read_oracle(tmp_path / "missing.csv") == []


def test_clips_from_before_baselines_and_several_videos(tmp_path):
    new, old = read_clips(write_clips(tmp_path / "clips.h5"))
    arrays = {"observed", "restored", "truth", "frames"}
    assert (old["video"], old["factor"], set(old) - {*CLIP, "video"}) == (0, 8, arrays)
    assert (new["video"], set(new) - {*CLIP, "video"}) == (2, arrays | {"bicubic"})


def write_clips(path):
    """One clip from before baselines and several videos, one of now."""
    with h5py.File(path, "w") as file:
        for name in ("old", "new"):
            group = file.create_group(name)
            group.attrs.update(CLIP)
            group["frames"] = [0, 1]
            for array in ("observed", "restored", "truth", *(["bicubic"] if name == "new" else [])):
                clip = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
                group.create_dataset(array, data=clip, compression="gzip")
        file["new"].attrs["video"] = 2
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_clips_are_named(tmp_path, damage):
    damage(write_clips(tmp_path / "clips.h5"))
    with pytest.raises(DamagedFile, match=r"clips\.h5: cannot be read .*; repeat the sweep's command"):
        read_clips(tmp_path / "clips.h5")


@pytest.mark.parametrize("missing", ["truth", "observed", "frames", "factor", "kernel"])
def test_clips_without_what_all_have(tmp_path, missing):
    path = write_clips(tmp_path / "clips.h5")
    with h5py.File(path, "a") as file:
        for holder in (file["old"], file["old"].attrs):
            if missing in holder:
                del holder[missing]
    with pytest.raises(DamagedFile, match=r"clips\.h5"):
        read_clips(path)


def test_a_curve_counts_a_video_once():
    rows = [item(0, noise, psnr=psnr, num_frames=10) for noise, psnr in enumerate((1.0, 3.0))]
    rows += [item(1, psnr=4.0, num_frames="10"), item(0, psnr=7.0, num_frames=2)]
    first, second = curve(rows, "psnr_first")
    assert (first[:2], math.isnan(first[2])) == ((2, 7.0), True)
    assert second == (10, pytest.approx(3.0), pytest.approx(1.0))


def test_rows_are_grouped_in_their_order():
    rows = [item(video, noise) for noise in (0, 1) for video in (2, 1)]
    groups = grouped(rows, lambda row: row["video"])
    assert list(groups) == [2, 1]
    assert [row["noise"] for row in groups[1]] == [0, 1]
