"""Means over videos and their standard errors, the one way in which tables and figures average."""

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any


def mean_and_error(values: Iterable[tuple[Any, float]]) -> tuple[float, float, int]:
    """Mean, standard error and number of videos, from (video, value) pairs; each video counts once.

    Noise instances of one video are not independent. The error is nan for a single video.
    """
    by_video: dict[Any, list[float]] = defaultdict(list)
    for video, value in values:
        by_video[video].append(value)
    means = [fmean(of_video) for of_video in by_video.values()]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return fmean(means), error, len(means)
