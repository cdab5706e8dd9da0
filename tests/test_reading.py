"""What figures read: rows that are ok, clips of this and earlier versions, means that count a video once."""

import math

import h5py
import numpy as np
import pytest

from vsr_lightning.figures.reading import mean_and_error, read_clips, read_ok_rows, read_table


def test_tables_are_read_as_text_and_failures_left_out(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("video,status\n0,ok\n1,non-finite at step 3\n")
    assert read_ok_rows(path) == [{"video": "0", "status": "ok"}]
    assert len(read_table(path)) == 2
    assert read_ok_rows(tmp_path / "none.csv") == read_table(tmp_path / "none.csv") == []


def test_clips_from_before_baselines_and_several_videos(tmp_path):
    path = tmp_path / "clips.h5"
    clip = np.zeros((2, 4, 4, 3), np.uint8)
    with h5py.File(path, "w") as file:
        for name, arrays in {"old": ("observed", "restored", "truth"), "new": ("restored", "bicubic")}.items():
            group = file.create_group(name)
            group.attrs["factor"] = 4
            group["frames"] = [0, 1]
            for array in arrays:
                group[array] = clip
        file["new"].attrs["video"] = 2
    new, old = read_clips(path)
    assert (old["video"], old["factor"], set(old) - {"factor", "video"}) == (
        *(0, 4),
        {"observed", "restored", "truth", "frames"},
    )
    assert (new["video"], set(new) - {"factor", "video"}) == (2, {"restored", "bicubic", "frames"})


def test_mean_and_error_over_videos():
    # Means of the videos 2 and 4: deviation sqrt(2), error 1.
    assert mean_and_error([(0, 1.0), (0, 3.0), (1, 4.0)]) == (3.0, pytest.approx(1.0), 2)
    mean, error, videos = mean_and_error([(5, 1.0), (5, 2.0)])
    assert (mean, videos) == (1.5, 1)
    assert math.isnan(error)
