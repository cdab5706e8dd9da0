"""Means over videos, and differences in pairs."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from vsr_lightning.averages import item_scores, mean_and_error, paired_difference


def test_mean_and_error_over_videos():
    # Means of the videos 2 and 4: deviation sqrt(2), error 1.
    assert mean_and_error([(0, 1.0), (0, 3.0), (1, 4.0)]) == (3.0, pytest.approx(1.0), 2)
    mean, error, videos = mean_and_error([(5, 1.0), (5, 2.0)])
    assert (mean, videos) == (1.5, 1)
    assert math.isnan(error)


def test_what_is_not_finite_has_no_error():
    mean, error, videos = mean_and_error([(0, math.inf), (1, 20.0)])
    assert (mean, math.isnan(error), videos) == (math.inf, True, 2)


def test_a_paired_difference_is_that_of_the_t_test():
    """Over per-video means; the items come in another order on each side, and each side has one more."""
    ours, theirs = np.random.default_rng(0).normal(20, 3, (2, 7, 4))
    items = [(video, noise) for video in range(7) for noise in range(4)]
    scores = {item: ours[item] for item in items} | {(7, 0): 99.0}
    reference = {(0, 4): -99.0} | {item: theirs[item] for item in reversed(items)}
    mean, error, videos = paired_difference(scores, reference)
    test = ttest_rel(ours.mean(axis=1), theirs.mean(axis=1))
    assert mean == pytest.approx((ours - theirs).mean())
    assert mean / error == pytest.approx(test.statistic)
    assert videos == test.df + 1 == 7


def test_what_a_pair_shares_does_not_enter_the_error():
    scores = {(video, noise): 10.0 * video + noise for video in range(3) for noise in range(2)}
    assert paired_difference({item: score + 0.5 for item, score in scores.items()}, scores) == (0.5, 0.0, 3)


def test_without_a_pair_there_is_no_difference():
    mean, error, videos = paired_difference({(0, 0): 1.0}, {(0, 1): 1.0})
    assert (math.isnan(mean), math.isnan(error), videos) == (True, True, 0)


def test_items_are_told_apart_by_video_noise_and_what_is_asked_for():
    rows = [{"video": 3, "noise": 1, "zeta": zeta, "psnr": str(20 + zeta)} for zeta in (1, 2)]
    assert item_scores(rows[:1], "psnr") == {(3, 1): 21.0}
    assert item_scores(rows, "psnr", also=("zeta",)) == {(3, 1, 1): 21.0, (3, 1, 2): 22.0}
