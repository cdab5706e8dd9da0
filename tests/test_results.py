"""Rows survive crashes and reruns; tables hold hand-computed numbers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from result_rows import SETTING, item, mean_of

from vsr_lightning.conditions import CONDITION
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation.results import (
    COLUMNS,
    NewRows,
    RowWriter,
    column_mean,
    item_key,
    measured_columns,
    normalise,
    read_rows,
    read_table,
    write_means,
    write_tables,
)

# Keys


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


def test_equal_values_of_other_types_keep_their_spelling():
    """Whichever comes first: what is remembered of one must not stand for another."""
    cases = [
        *[(True, "True"), (False, "False"), ("True", "'True'"), (math.nan, "'nan'"), ("nan", "'nan'"), (None, "''")],
        *((value, "0") for value in (0, 0.0, -0.0, "0", np.float32(0))),
        *((value, "1") for value in (1, 1.0, "1", np.int64(1))),
        *((value, "0.02") for value in (0.02, "0.02", np.float32(0.02))),
    ]
    for value, spelling in [*cases, *reversed(cases)]:
        assert repr(normalise(value)) == spelling


# Rows


def test_rows_of_all_ranks_are_read(tmp_path):
    RowWriter(tmp_path, rank=0).append([item(video=0), item(video=1)])
    RowWriter(tmp_path, rank=1).append([item(video=2, psnr=np.float32(21.5), prior=Path("a/b"))])
    rows = read_rows(tmp_path)
    assert [row["video"] for row in rows] == [0, 1, 2]
    assert rows[0] == item(video=0)
    assert (rows[2]["psnr_first"], rows[2]["prior"]) == (21.5, "a/b")


def test_new_rows_of_all_ranks_are_counted(tmp_path):
    first = RowWriter(tmp_path, rank=0)
    first.append([item(video=0)])
    new = NewRows(tmp_path)
    assert new.count() == 0
    first.append([item(video=1), item(video=1)])
    RowWriter(tmp_path, rank=1).append([item(video=2)])  # a file that was not there yet
    assert [new.count(), new.count()] == [3, 3]
    first.append([item(video=3)])
    assert new.count() == 4


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


# Tables


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


def test_nan_is_a_gap(tmp_path):
    """As the temporal error of a single frame, in rows that are ok."""
    RowWriter(tmp_path).append([item(video=video) | {"temporal_error": math.nan} for video in range(2)])
    write_tables(tmp_path)
    (line,) = read_table(tmp_path / "summary.csv")
    assert (line["n"], line["temporal_error"], line["temporal_error_se"]) == (2, None, None)
    assert column_mean([{"video": 0, "x": math.nan}, {"video": 1, "x": 3.0}], "x") == (3.0, None)


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
