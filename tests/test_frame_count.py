"""Figs. 2 and 3 are drawn from result files; their numbers are checked against hand-made rows."""

import math

import numpy as np
import pytest
import result_rows
from PIL import Image

from vsr_lightning.evaluation.results import RowWriter, read_table, write_tables
from vsr_lightning.evaluation.videos import Clip, ClipWriter, merge_clips, read_clips
from vsr_lightning.figures.frame_count import draw_fig2, draw_fig3, fig2, make_figures, random_minus_sequential
from vsr_lightning.figures.reading import read_ok_rows

FRAMES, SIZE = 10, 64


def item(num_frames, order, video, noise, psnr, **other):
    return result_rows.item(video, noise, psnr=psnr, num_frames=num_frames, order=order, **other)


def bouncing_square():
    """uint8 (F, SIZE, SIZE, 1): a square moving along the diagonal and back."""
    video = np.zeros((FRAMES, SIZE, SIZE, 1), np.uint8)
    for frame, corner in enumerate([4, 12, 20, 28, 36, 44, 36, 28, 20, 12]):
        video[frame, corner : corner + 16, corner : corner + 16] = 255
    return video


def append_clip(run_dir, row, error):
    truth = bouncing_square()
    restored = np.where(truth > 0, 255 - error, error).astype(np.uint8)
    frames = range(row["num_frames"])
    ClipWriter(run_dir).append([Clip(row, truth[:, ::8, ::8], restored, truth, frames)])


@pytest.fixture
def run_dir(tmp_path):
    """A sweep over 1, 2, 5 and 10 frames in both orders, two videos, two noise instances, with clips."""
    items = [
        item(n, order, video, noise, psnr=15 + n + video + 0.1 * noise + (order == "random"))
        | {"psnr_first_bicubic": 12.0 + video}
        for n in (1, 2, 5, 10)
        for order in ("sequential", "random")
        for video in (0, 1)
        for noise in (0, 1)
    ]
    RowWriter(tmp_path).append([*items, item(2, "random", 7, 0, math.nan) | {"status": "non-finite at step 3"}])
    write_tables(tmp_path)
    for n in (1, 2, 5, 10):
        append_clip(tmp_path, item(n, "sequential", 0, 0, 0), error=51 if n == 1 else 10)
    merge_clips(tmp_path)
    return tmp_path


def test_random_minus_sequential_counts_a_video_once():
    rows = [
        *(item(3, "sequential", 0, noise, 20.0) for noise in (0, 1, 2)),
        *(item(3, "random", 0, noise, 21.0 + noise) for noise in (0, 1, 2)),  # differences 1, 2, 3: mean 2
        item(3, "sequential", 1, 0, 18.0),
        item(3, "random", 1, 0, 22.0),  # 4
    ]
    # Means of the videos 2 and 4: mean 3, deviation sqrt(2), error sqrt(2) / sqrt(2). Over items it were 2.5.
    assert random_minus_sequential(rows) == {3: (pytest.approx(3.0), pytest.approx(1.0), 2)}


def test_random_minus_sequential_needs_both_orders_and_ok_rows():
    rows = [
        item(1, "sequential", 0, 0, 20.0),  # one frame: never measured in random order
        item(2, "sequential", 0, 0, 20.0),
        item(2, "random", 0, 1, 25.0),  # another noise instance
        item(3, "sequential", 0, 0, 20.0),
        item(3, "random", 0, 0, 99.0, status="non-finite at step 3"),
        item(4, "sequential", 0, 0, 20.0, psnr_mean=7.0),
        item(4, "random", 0, 0, 20.5, psnr_mean=9.0),
        item(4, "random", 0, 0, 30.0, sigma_h=6.0),  # another setting
    ]
    difference = random_minus_sequential(rows, "psnr_mean")
    assert list(difference) == [4]
    assert difference[4][0] == pytest.approx(2.0)
    assert math.isnan(difference[4][1])
    assert difference[4][2] == 1


def test_random_minus_sequential_reads_the_table(run_dir):
    difference = random_minus_sequential(read_table(run_dir / "results.csv"))
    assert list(difference) == [1, 2, 5, 10]
    for mean, error, videos in difference.values():
        assert (mean, error, videos) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9), 2)


def lines_of(axes):
    """What the legend names: the container of error bars or the line."""
    return dict(zip(axes.get_legend_handles_labels()[1], axes.get_legend_handles_labels()[0], strict=True))


def test_fig3_shows_means_errors_and_baseline(run_dir):
    rows = [row for row in read_table(run_dir / "results.csv") if row["status"] == "ok"]
    (axes,) = draw_fig3(rows).axes
    lines = lines_of(axes)
    assert list(lines) == ["bicubic: 12.5 dB", "sequential order", "random order"]
    assert set(lines["bicubic: 12.5 dB"].get_ydata()) == {12.5}
    points, _, (bars,) = lines["sequential order"].lines
    assert points.get_xdata().tolist() == [1, 2, 5, 10]
    assert points.get_ydata() == pytest.approx([16.55, 17.55, 20.55, 25.55])
    # Videos differ by 1 dB: standard error 0.5, whatever the noise instances do.
    assert [high - low for (_, low), (_, high) in bars.get_segments()] == pytest.approx([1.0] * 4)
    assert lines["random order"].lines[0].get_ydata() == pytest.approx([17.55, 18.55, 21.55, 26.55])
    assert lines["random order"].lines[0].get_color() == "tab:red"
    assert "2 videos × 2 noise instances" in axes.get_title()
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_fig3_shows_only_what_was_measured():
    rows = [item(n, "sequential", 0, 0, 20.0 + n) for n in (1, 2, 3, 4)]
    rows += [item(n, "random", 0, 0, 22.0 + n) for n in (2,)]
    (axes,) = draw_fig3(rows).axes
    points = lines_of(axes)["random order"].lines[0]
    assert points.get_xydata().tolist() == [[2, 24]]


def test_fig3_has_a_panel_for_each_setting():
    rows = [item(n, "sequential", 0, 0, 20.0 + s, sigma_h=s) for n in (1, 2) for s in (0, 2, 4, 6)]
    panels = draw_fig3(rows).axes
    shown = [axes for axes in panels if axes.axison]
    assert (len(panels), len(shown)) == (6, 4)
    assert [lines_of(axes)["sequential order"].lines[0].get_ydata()[0] for axes in shown] == [20, 22, 24, 26]


def test_fig2_rows_labels_and_pictures(run_dir):
    figure = draw_fig2(read_clips(run_dir))
    panels = np.array(figure.axes).reshape(-1, FRAMES)
    labels = [axes.get_ylabel() for axes in panels[:, 0]]
    # An error of 51 everywhere is 1/5 of the range: 20 log10(5) = 13.98 dB; of 10, 28.13 dB.
    assert labels == [
        *("truth", "observed\n8×8"),
        *("1 frame\n14.0 dB", "2 frames\n28.1 dB", "5 frames\n28.1 dB", "10 frames\n28.1 dB"),
    ]
    assert [axes.get_title() for axes in panels[0]] == [f"frame {number}" for number in range(1, FRAMES + 1)]
    np.testing.assert_array_equal(panels[0, 3].images[0].get_array()[..., :1], bouncing_square()[3])
    assert panels[1, 0].images[0].get_array().shape == (8, 8, 3)
    two_frames = [axes.spines["top"].get_linewidth() for axes in panels[3]]
    assert two_frames[0] == two_frames[1] > two_frames[2] == two_frames[9]


def test_fig2_crosses_out_what_was_not_observed(tmp_path):
    append_clip(tmp_path, item(3, "sequential", 0, 0, 0), error=10)
    merge_clips(tmp_path)
    panels = np.array(draw_fig2(read_clips(tmp_path)).axes).reshape(-1, FRAMES)
    assert [len(axes.patches) for axes in panels[1]] == [0] * 3 + [1] * 7
    assert not any(axes.patches for axes in panels[[0, 2]].flat)


def test_fig2_picks_six_numbers_of_the_sequential_order(tmp_path):
    for order in ("random", "sequential"):
        for n in range(1, FRAMES + 1):
            append_clip(tmp_path, item(n, order, 0, 0, 0), error=10 if order == "random" else 20)
    merge_clips(tmp_path)
    panels = np.array(draw_fig2(read_clips(tmp_path)).axes).reshape(-1, FRAMES)
    labels = [axes.get_ylabel().split("\n") for axes in panels[2:, 0]]
    assert [label[0].split()[0] for label in labels] == ["1", "2", "3", "4", "6", "10"]
    assert {label[1] for label in labels} == {"22.1 dB"}  # an error of 20: the sequential clips


def test_fig2_keeps_to_one_video(tmp_path):
    for video in (1, 0):
        for n in (1, 3):
            append_clip(tmp_path, item(n, "sequential", video, 0, 0), error=10 * (2 - video))
    merge_clips(tmp_path)
    panels = np.array(draw_fig2(read_clips(tmp_path)).axes).reshape(-1, FRAMES)
    assert [axes.get_ylabel() for axes in panels[2:, 0]] == ["1 frame\n22.1 dB", "3 frames\n22.1 dB"]


def test_make_figures_writes_pictures(run_dir):
    paths = make_figures(run_dir)
    assert [path.name for path in paths] == ["fig2.png", "fig3.png", "paired.csv"]
    by_number = {row["num_frames"]: row["psnr_first_difference"] for row in read_table(paths.pop())}
    assert by_number == pytest.approx({1: 1, 2: 1, 5: 1, 10: 1})
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) >= 600
        # Blue and dark pixels: curves or borders, and text. A margin of white all around: nothing is clipped.
        assert ((pixels[..., 2].astype(int) - pixels[..., 0]) > 100).sum() > 500
        assert (pixels.max(axis=-1) < 80).sum() > 1000
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all()


def test_make_figures_skips_what_has_no_data(tmp_path):
    assert make_figures(tmp_path) == []
    RowWriter(tmp_path).append([item(3, order, 0, 0, 20.0) for order in ("sequential", "random")])
    write_tables(tmp_path)
    assert make_figures(tmp_path) == [tmp_path / "paired.csv"]  # one number of frames is no curve
    RowWriter(tmp_path).append([item(1, "sequential", 0, 0, 18.0)])
    write_tables(tmp_path)
    assert make_figures(tmp_path) == [tmp_path / "fig3.png", tmp_path / "paired.csv"]


def test_fig2_without_clips_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"clips\.h5"):
        fig2(tmp_path, tmp_path / "fig2.png")


def test_fig3_shows_the_oracle_where_it_saw_the_same(run_dir):
    rows = read_ok_rows(run_dir / "results.csv")
    oracle = [
        {**rows[0], "sampler": "known_motion", "order": "sequential", "num_frames": n, "psnr_first": 20 + n}
        for n in (10, 1)
    ]
    elsewhere = [{**row, "sigma_y": "0.5"} for row in oracle]
    (axes,) = draw_fig3(rows, [*oracle, *elsewhere]).axes
    (line,) = [line for line in axes.lines if line.get_label() == "told the motion, sequential"]
    assert line.get_xydata().tolist() == [[1, 21], [10, 30]]
    assert not [line for line in draw_fig3(rows, elsewhere).axes[0].lines if "told" in str(line.get_label())]
