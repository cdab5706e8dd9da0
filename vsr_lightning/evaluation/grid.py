"""A sweep as a dataset: one item for each clip, noise instance and condition."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsr_lightning.conditions import Item, items_of, operators
from vsr_lightning.data.clips import to_video
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.degradation.frame_mask import frame_mask, observed_frames
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Experiment, Grid
from vsr_lightning.inference.lit_vsr import ObservationBatch
from vsr_lightning.targets import check_target

Sample = tuple[Item, Tensor]  # an item and its true video, (F, C, H, W) in [-1, 1]
KEPT_VIDEOS = 256  # clips, of half a megabyte each if they are 10 frames of 64 x 64 in colour


def degradations(grid: Grid, degradation: Downsample) -> list[Downsample]:
    """The operator at each factor and kernel of the grid. Raises UserError if there is no such operator."""
    return [
        replace(degradation, factor=factor, kernel=kernel)
        for factor, kernel in operators(grid, degradation.factor, degradation.kernel)
    ]


def _check_widths(grid: Grid, variants: Sequence[Downsample]) -> None:
    """Raise UserError if several widths are listed, and no kernel has one."""
    if any(variant.has_width for variant in variants):
        return
    for name in ("sigma_h", "sigma_h_per_factor"):
        if len(getattr(grid, name)) > 1:
            kernels = ", ".join(dict.fromkeys(variant.kernel for variant in variants))
            raise UserError(
                f"grid.{name}: {getattr(grid, name)} for kernels without a width ({kernels}); "
                "add gaussian to grid.kernel, or give one number"
            )


def sampler_sections(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """The samplers of a sweep, by the name that its rows give them: those of `grid.sampler`, else the one."""
    if experiment.grid.sampler:
        return {name: experiment.samplers[name] for name in experiment.grid.sampler}
    if experiment.samplers and not experiment.sampler:
        raise UserError(f"grid.sampler: name the samplers to compare, of {', '.join(experiment.samplers)}")
    check_target(experiment.sampler, "sampler")
    name = experiment.sampler["target"].rpartition(".")[2].removesuffix("_sample")
    return {name: experiment.sampler}


def grid_items(grid: Grid, samplers: Mapping[str, dict[str, Any]], degradation: Downsample) -> list[Item]:
    """The items of a grid; what can share a batch lies side by side.

    `samplers` (see `sampler_sections`) and `degradation` say what lists that are empty leave open. Raises UserError.
    """
    _check_widths(grid, degradations(grid, degradation))
    items = items_of(grid, samplers, degradation.factor, degradation.kernel)
    return sorted(items, key=_batch_order(items))


def _batch_order(items: Sequence[Item]) -> Callable[[Item], int]:
    """A sort key that brings together what can share a batch, and changes no other order."""
    places = {key: place for place, key in enumerate(dict.fromkeys(item.batch_key for item in items))}
    return lambda item: places[item.batch_key]


def first_look(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, so chosen that every condition has its first video and noise instance before any has its
    second video, and every video before any has its second noise instance. In their order; all, without a limit."""
    if limit is None:
        return items
    chosen = sorted(range(len(items)), key=lambda index: (items[index].noise, items[index].video))[:limit]
    return [items[index] for index in sorted(chosen)]


def batches_of_rank(items: Sequence[Item], batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Indices of the items that a rank restores together: one `batch_key` in a batch, no item twice, none left out."""
    batches: list[list[int]] = []
    for _, members in itertools.groupby(range(len(items)), key=lambda index: items[index].batch_key):
        group = list(members)
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches[rank::world_size]


class GridDataset(Dataset[ObservationBatch]):
    """The batches of one rank, each made when it is asked for.

    Args:
        items: all restorations that are to be made.
        batches: indices of the items in each batch of this rank.
        clips: uint8 (F, H, W, C) by video number.
        seed: of the sweep.
        pad_to: keep this batch size by repeating the last sample, so that one shape serves; None for no padding.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batches: list[list[int]],
        clips: Dataset[Tensor],
        seed: int,
        pad_to: int | None,
    ) -> None:
        self.items, self.batches, self.seed, self.pad_to = items, batches, seed, pad_to
        # A sweep restores few clips, and each in many batches.
        self._video = functools.lru_cache(KEPT_VIDEOS)(lambda number: to_video(clips[number]))

    def __len__(self) -> int:
        return len(self.batches)

    def items_of(self, index: int) -> list[Item]:
        """The items of a batch, without making it."""
        return [self.items[i] for i in self.batches[index]]

    def __getitem__(self, index: int) -> ObservationBatch:
        if index >= len(self):
            raise IndexError(index)  # ends a for loop
        samples = [(item, self._video(item.video)) for item in self.items_of(index)]
        return observation_batch(samples, self.seed, self.pad_to)


def observation_batch(samples: list[Sample], seed: int, pad_to: int | None = None) -> ObservationBatch:
    """The samples as one batch, repeating the last up to `pad_to`. They share a `batch_key`."""
    size = len(samples)
    samples = samples + samples[-1:] * ((pad_to or size) - size)
    items = [item for item, _ in samples]
    clips = {item.video: video for item, video in samples}
    places = {number: place for place, number in enumerate(clips)}
    frames = len(samples[0][1])
    return ObservationBatch(
        clips=torch.stack([*clips.values()]),
        clip_of=torch.tensor([places[item.video] for item in items]),
        mask=frame_mask([frames_of(item, frames, seed) for item in items], frames),
        sigma_h=[item.sigma_h for item in items],
        sigma_y=torch.tensor([item.sigma_y for item in items]),
        keys=[(seed, item.video, item.noise) for item in items],
        factor=items[0].factor,
        kernel=items[0].kernel,
        sampler=items[0].sampler,
        steps=items[0].steps,
        zeta=torch.tensor([item.zeta for item in items]),
        size=size,
    )


def frames_of(item: Item, total: int, seed: int) -> list[int]:
    """Indices of the observed frames."""
    return observed_frames(item.num_frames, total, item.order, seed, item.video)


def row_maker(fixed: dict[str, Any]) -> Callable[[Item], dict[str, Any]]:
    """Result rows of items, without what is measured; `fixed` holds the columns that the whole sweep shares."""
    return lambda item: {**fixed, **asdict(item)}
