"""Means over videos."""

import math

import pytest

from vsr_lightning.averages import mean_and_error


def test_mean_and_error_over_videos():
    # Means of the videos 2 and 4: deviation sqrt(2), error 1.
    assert mean_and_error([(0, 1.0), (0, 3.0), (1, 4.0)]) == (3.0, pytest.approx(1.0), 2)
    mean, error, videos = mean_and_error([(5, 1.0), (5, 2.0)])
    assert (mean, videos) == (1.5, 1)
    assert math.isnan(error)
