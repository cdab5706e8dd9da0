"""Means over videos and their standard errors: the one way in which tables and figures average and compare in pairs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from vsr_lightning.conditions import ITEM

ItemKey = tuple[Any, ...]  # what tells restorations apart; begins with the video


def mean_and_error(values: Iterable[tuple[Any, float]]) -> tuple[float, float, int]:
    """Mean, standard error and number of videos, from (video, value) pairs; each video counts once.

    Noise instances of one video are not independent. The error is nan for a single video, and of what is not finite.
    """
    by_video: dict[Any, list[float]] = defaultdict(list)
    for video, value in values:
        by_video[video].append(value)
    means = [fmean(of_video) for of_video in by_video.values()]
    has_error = len(means) > 1 and all(map(math.isfinite, means))
    error = stdev(means) / math.sqrt(len(means)) if has_error else math.nan
    return fmean(means), error, len(means)


def known(number: float) -> float | None:
    """None for nan: an empty cell of a table."""
    return None if math.isnan(number) else number


def item_scores(rows: Iterable[Mapping[str, Any]], column: str, also: Sequence[str] = ()) -> dict[ItemKey, float]:
    """A measured column by video, noise instance and the columns `also`."""
    return {tuple(row[name] for name in (*ITEM, *also)): float(row[column]) for row in rows}


def paired_difference(scores: Mapping[ItemKey, float], reference: Mapping[ItemKey, float]) -> tuple[float, float, int]:
    """`mean_and_error` of scores less the reference's, over the items that both have.

    Clips and sensor noise, which a pair has in common, do not enter the error. Without a pair: (nan, nan, 0).
    """
    pairs = [(item[0], score - reference[item]) for item, score in scores.items() if item in reference]
    return mean_and_error(pairs) if pairs else (math.nan, math.nan, 0)
