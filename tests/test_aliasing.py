"""Figs. 4 and 5 are drawn from result files; their numbers are checked against hand-made rows."""

import csv
import math

import numpy as np
import pytest
import result_rows
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vsr_lightning.evaluation.results import RowWriter, write_tables
from vsr_lightning.evaluation.videos import Clip, ClipWriter, merge_clips
from vsr_lightning.figures.aliasing import convergence, draw_fig4, draw_fig5, make_figures, sharpest_and_blurriest
from vsr_lightning.figures.reading import read_ok_rows


def item(factor, num_frames, sigma_h, video, noise, psnr):
    return result_rows.item(video, noise, psnr=psnr, factor=factor, num_frames=num_frames, sigma_h=sigma_h)


@pytest.fixture
def run_dir(tmp_path):
    """Two factors, three widths, 1 and 10 frames, two videos with two noise instances; the widths converge at 4x."""
    items = [
        item(factor, n, sigma_h, video, noise, 16 + n / 2 + video + noise - loss * sigma_h)
        for factor, n, loss in ((4, 1, 0.3), (4, 10, 0.0), (8, 1, 0.3), (8, 10, 0.3))
        for sigma_h in (0.0, 4.0, 10.0)
        for video in (0, 1)
        for noise in (0, 1)
    ]
    RowWriter(tmp_path).append([*items, item(8, 10, 0.0, 9, 0, 99.0) | {"status": "non-finite at step 3"}])
    write_tables(tmp_path)
    for factor in (4, 8):
        for sigma_h in (0.0, 4.0, 10.0):
            truth = np.full((10, 64, 64, 1), 200, np.uint8)
            observed = np.full((10, 64 // factor, 64 // factor, 1), int(20 * sigma_h), np.uint8)
            ClipWriter(tmp_path).append([Clip(item(factor, 10, sigma_h, 0, 0, 0), observed, truth, truth, range(10))])
    merge_clips(tmp_path)
    return tmp_path


def test_convergence_is_paired_by_video(run_dir):
    make_figures(run_dir)
    lines = {
        (int(line["factor"]), int(line["num_frames"]), float(line["blurriest"])): line
        for line in csv.DictReader((run_dir / "convergence.csv").open())
    }
    assert set(lines) == {(factor, frames, to) for factor in (4, 8) for frames in (1, 10) for to in (4.0, 10.0)}
    apart, less_apart, together = lines[8, 10, 10.0], lines[8, 10, 4.0], lines[4, 10, 10.0]
    assert float(apart["spread"]) == pytest.approx(3)
    assert float(less_apart["spread"]) == pytest.approx(1.2)
    assert float(apart["difference"]) == pytest.approx(3)
    assert float(apart["difference_se"]) == pytest.approx(0, abs=1e-9)  # videos differ, their differences do not
    assert float(apart["spread_se"]) == pytest.approx(0, abs=1e-9)
    assert float(together["spread"]) == pytest.approx(0)
    assert (apart["sharpest"], apart["spread_oracle"], apart["videos"]) == ("0.0", "", "2")


def test_title_of_a_single_panel_fits_into_the_figure(run_dir):
    rows = [row for row in read_ok_rows(run_dir / "results.csv") if int(row["factor"]) == 8]
    names = {"prior": "moving_mnist@babc2e5a", "dataset": "moving_mnist mnist test, observed as reconstructed"}
    figure = draw_fig5([row | names for row in rows])
    FigureCanvasAgg(figure).draw()
    (title,) = figure.texts
    box = title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_widths_without_a_common_video_have_a_spread_and_no_difference():
    """As in a sweep that is under way."""
    (line,) = convergence([item(8, 1, 0.0, 0, 0, 17.0), item(8, 1, 2.0, 1, 0, 19.0)])
    assert line["spread"] == pytest.approx(2)
    assert math.isnan(line["difference"])
    assert line["videos"] == 0


def test_spread_is_of_the_best_width_not_of_the_sharpest():
    rows = [item(8, 1, width, 0, 0, psnr) for width, psnr in ((0.0, 17.0), (2.0, 19.0), (4.0, 18.0))]
    _, line = convergence(rows)
    assert line["spread"] == pytest.approx(2)
    assert line["difference"] == pytest.approx(-1)
    assert math.isnan(line["difference_se"])
    assert math.isnan(line["spread_se"])


def test_the_error_of_a_spread_is_that_of_a_difference_where_one_width_is_always_best():
    """The jackknife of a mean is its standard error."""
    losses = (0.5, 1.0, 3.0, 1.5)
    rows = [
        item(8, 1, width, video, 0, 20 - video - width * loss)
        for video, loss in enumerate(losses)
        for width in (0.0, 1.0)
    ]
    (line,) = convergence(rows)
    assert line["spread"] == pytest.approx(np.mean(losses))
    assert line["spread_se"] == pytest.approx(np.std(losses, ddof=1) / 2)
    assert line["spread_se"] == pytest.approx(line["difference_se"])


def test_the_oracles_spread_stands_beside_where_it_was_asked_for_all_widths():
    rows = [item(8, 1, width, 0, 0, 20.0) for width in (0.0, 2.0, 4.0)]
    oracle = [{**row, "psnr_first": 20.0 - row["sigma_h"]} for row in rows[:2]]
    assert [line["spread_oracle"] for line in convergence(rows, oracle)] == [2.0, None]
    assert [line["spread_oracle"] for line in convergence(rows, [{**row, "num_frames": 2} for row in oracle])] == [
        None
    ] * 2


def test_fig5_has_a_panel_for_each_factor_and_a_curve_for_each_width(run_dir):
    with (run_dir / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    panels = draw_fig5(rows).axes
    assert [axes.get_title() for axes in panels] == ["4×", "8×"]
    for axes in panels:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            *(r"$\sigma_h$ 0 px", r"$\sigma_h$ 4 px", r"$\sigma_h$ 10 px")
        ]
    curve = panels[1].containers[2].lines[0]
    assert list(curve.get_xdata()) == [1, 10]
    assert list(curve.get_ydata()) == pytest.approx([16 + 0.5 + 1 - 3, 16 + 5 + 1 - 3])


def test_fig4_shows_the_least_and_the_most_blurred_of_the_largest_factor(run_dir):
    from vsr_lightning.figures.reading import read_clips

    pair = sharpest_and_blurriest(read_clips(run_dir / "clips.h5"))
    assert [(int(clip["factor"]), float(clip["sigma_h"])) for clip in pair] == [(8, 0), (8, 10)]
    pictures = [axes.images[0].get_array() for axes in draw_fig4(*pair).axes]
    assert len(pictures) == 30
    assert pictures[10].shape[:2] == (8, 8)
    assert (pictures[10].max(), pictures[20].max()) == (0, 200)


def test_figures_are_written_where_their_data_is(run_dir, tmp_path_factory):
    assert [path.name for path in make_figures(run_dir)] == ["fig4.png", "fig5.png", "convergence.csv"]
    for name in ("fig4.png", "fig5.png"):
        assert Image.open(run_dir / name).width > 400
    (run_dir / "clips.h5").unlink()
    assert [path.name for path in make_figures(run_dir)] == ["fig5.png", "convergence.csv"]


def test_fig5_dots_what_the_oracle_reaches_under_the_same_observation(run_dir):
    rows = read_ok_rows(run_dir / "results.csv")
    like = next(row for row in rows if row["kernel"] == "gaussian")
    oracle = [{**like, "sampler": "known_motion", "num_frames": n, "psnr_first": 20 + n} for n in (10, 1)]
    dotted = [line for line in draw_fig5(rows, oracle).axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xydata().tolist() for line in dotted] == [[[1, 21], [10, 30]]]
    for other in ({"sigma_h": "77"}, {"order": "random"}, {"seed": "5"}):
        figure = draw_fig5(rows, [{**row, **other} for row in oracle])
        assert not [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
        assert "oracle" not in figure.get_suptitle()
