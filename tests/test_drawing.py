"""The grid of panels in which figures show frames, and how they write numbers."""

import numpy as np
import pytest

from vsr_lightning.figures.drawing import frame_psnr, operator, panel_grid, plural, short, source


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
