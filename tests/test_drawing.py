"""The grid of panels in which figures show frames, curves, and how they write numbers."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from result_rows import item

from vsr_lightning.figures.drawing import (
    against_frames,
    counts,
    draw_curve,
    frame_psnr,
    number_frames,
    operator,
    panel_grid,
    plural,
    short,
    source,
)


def test_panels_are_square_within_the_figure_and_apart():
    figure, panels = panel_grid(2, 3, 4, cell=0.8, gap=0.2)
    assert panels.shape == (2, 3, 4)
    assert list(figure.axes) == list(panels.flat)  # row by row
    boxes = np.array([axes.get_position().bounds for axes in figure.axes])
    inches = boxes * np.tile([figure.get_figwidth(), figure.get_figheight()], 2)
    np.testing.assert_allclose(inches[:, 2:], 0.75)
    assert (inches[:, 0] >= 0.95 - 1e-9).all()  # row labels
    assert (inches[:, :2] + inches[:, 2:] <= [figure.get_figwidth(), figure.get_figheight() - 0.58 + 1e-9]).all()
    x, y = inches.reshape(2, 3, 4, 4)[..., 0], inches.reshape(2, 3, 4, 4)[..., 1]
    np.testing.assert_allclose(np.diff(x, axis=2), 0.8)
    np.testing.assert_allclose(np.diff(y, axis=1), -0.8)
    np.testing.assert_allclose(y[0, -1] - y[1, 0], 0.8 + 0.2)


def test_psnr_of_frames_in_8_bits():
    frame = np.full((4, 4, 3), 100, np.uint8)
    assert frame_psnr(frame + 51, frame) == pytest.approx(20 * np.log10(5))
    assert frame_psnr(frame, frame) == pytest.approx(148, abs=0.2)


def test_words():
    assert [short(number) for number in ("2", 2.0, 0.02)] == ["2", "2", "0.02"]
    assert [plural(number, "video") for number in (1, 2)] == ["1 video", "2 videos"]
    assert source({"prior": "a/bair", "dataset": "bair"}) == "bair"
    assert source({"prior": "push@1", "dataset": "push test"}) == "prior push@1 on push test"
    assert operator({"factor": 4, "kernel": "box", "sigma_h": 0}) == "4×, box"
    assert counts([item(0, noise) for noise in (0, 1)]) == "1 video × 2 noise instances"
    assert counts([item(0), item(3)]) == "2 videos × 1 noise instance, bars: standard error over videos"


def test_a_curve_and_its_axes():
    axes = Figure().subplots()
    draw_curve(axes, [(1, 20.0, 0.5), (10, 24.0, 1.0)], "ours", "tab:red", "s")
    against_frames(axes, legend_columns=2)
    points, _, (bars,) = axes.containers[0].lines
    assert points.get_xydata().tolist() == [[1, 20], [10, 24]]
    assert (points.get_color(), points.get_marker()) == ("tab:red", "s")
    assert [high - low for (_, low), (_, high) in bars.get_segments()] == [1, 2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours"]
    assert axes.get_xlabel() == "number of observed frames"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_frames_are_numbered_from_1():
    line = Figure().subplots(1, 3)
    number_frames(line, (0, 2, 9))
    assert [axes.get_title() for axes in line] == ["frame 1", "frame 3", "frame 10"]
