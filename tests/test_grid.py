"""A sweep as a dataset: every item once, on any number of ranks, in batches of one shape."""

import itertools
from pathlib import Path

import pytest
import torch

from vsr_lightning.conditions import Item
from vsr_lightning.config import load_config
from vsr_lightning.data.clips import to_video
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation import grid
from vsr_lightning.evaluation.grid import (
    GridDataset,
    batches_of_rank,
    first_look,
    frames_of,
    grid_items,
    observation_batch,
    row_maker,
    sampler_sections,
)
from vsr_lightning.experiment import Grid

SWEEP = Path(__file__).parents[1] / "experiments" / "moving_mnist" / "sweep_frames.yaml"
SAMPLER = {"dps": {"steps": 5, "zeta": 1.0}}
GAUSSIAN = Downsample()


def make_item(**changes):
    values = {"factor": 8, "kernel": "gaussian", "num_frames": 2, "order": "random", "sigma_h": 2.0, "sigma_y": 0.02}
    return Item(**values | {"sampler": "dps", "steps": 5, "zeta": 1.0, "video": 0, "noise": 0} | changes)


def operators_of(**lists):
    """(factor, kernel, sigma_h) of the conditions of a grid, in their order."""
    items = grid_items(Grid(videos=1, noises=1, **lists), SAMPLER, GAUSSIAN)
    assert len(set(items)) == len(items)
    return [(item.factor, item.kernel, item.sigma_h) for item in items]


def make_clips(count=3, frames=4):
    return torch.randint(0, 256, (count, frames, 16, 16, 1), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_the_shipped_sweep_has_1600_items():
    experiment = load_config(SWEEP, ["full=true"])
    items = grid_items(experiment.grid, sampler_sections(experiment), GAUSSIAN)
    assert len(items) == len(set(items)) == 1600
    # The noise instances of a video lie side by side, then the videos of a condition.
    assert [(item.video, item.noise) for item in items[:80]] == list(itertools.product(range(8), range(10)))
    assert {(item.num_frames, item.order) for item in items} == set(
        itertools.product(range(1, 11), ["sequential", "random"])
    )
    assert {(item.sigma_h, item.sigma_y) for item in items} == {(2.0, 0.02)}
    # The sampler's setting is whatever was tuned last; the sweep takes it as the YAML has it.
    assert {(item.steps, item.zeta) for item in items} == {tuple(experiment.sampler[key] for key in ("steps", "zeta"))}
    assert {(item.factor, item.kernel) for item in items} == {(8, "gaussian")}


def test_lists_of_the_grid_stand_over_the_sampler():
    grid = Grid(videos=1, noises=1, steps=[10, 20], zeta=[1, 2])
    items = grid_items(grid, SAMPLER, GAUSSIAN)
    assert [(item.steps, item.zeta) for item in items] == [(10, 1), (10, 2), (20, 1), (20, 2)]
    with pytest.raises(UserError, match="sampler.zeta: missing"):
        grid_items(Grid(), {"dps": {"steps": 5}}, GAUSSIAN)


def test_lists_of_the_grid_stand_over_the_degradation():
    assert operators_of() == [(8, "gaussian", 2)]
    assert operators_of(factor=[4, 2]) == [(4, "gaussian", 2), (2, "gaussian", 2)]
    assert operators_of(kernel=["box"]) == [(8, "box", 0)]


def test_a_kernel_without_a_width_takes_part_once():
    assert operators_of(kernel=["bicubic", "gaussian", "box"], factor=[4, 8], sigma_h=[1, 3]) == [
        *[(4, "bicubic", 0), (4, "gaussian", 1), (4, "gaussian", 3), (4, "box", 0)],
        *[(8, "bicubic", 0), (8, "gaussian", 1), (8, "gaussian", 3), (8, "box", 0)],
    ]


def test_a_width_may_follow_the_factor():
    assert operators_of(kernel=["bicubic", "gaussian"], factor=[4, 8], sigma_h_per_factor=[0.25, 0.5]) == [
        *[(4, "bicubic", 0), (4, "gaussian", 1), (4, "gaussian", 2)],
        *[(8, "bicubic", 0), (8, "gaussian", 2), (8, "gaussian", 4)],
    ]


@pytest.mark.parametrize("widths", [{"sigma_h": [0, 1]}, {"sigma_h_per_factor": [0.5, 1]}])
def test_several_widths_for_kernels_that_have_none(widths):
    with pytest.raises(UserError, match=rf"grid.{next(iter(widths))}: .* for kernels without a width \(box, bicubic\)"):
        operators_of(kernel=["box", "bicubic"], **widths)


def test_a_large_grid_fills_its_batches():
    """The aliasing sweep: every batch but the last of a factor is full, whatever conditions it mixes."""
    grid = Grid(
        videos=4, noises=11, num_frames=list(range(1, 11)), factor=[4, 8], sigma_h=[float(s) for s in range(11)]
    )
    items = grid_items(grid, SAMPLER, GAUSSIAN)
    assert len(items) == len(set(items)) == 9680
    batches = batches_of_rank(items, 80, 0, 1)
    assert [len(batch) for batch in batches] == [*[80] * 60, 40] * 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_no_item_is_lost_or_doubled(world_size, batch_size):
    grid = Grid(videos=3, noises=2, num_frames=[1, 2], steps=[10, 20], factor=[4, 8], kernel=["box", "gaussian"])
    items = grid_items(grid, SAMPLER, GAUSSIAN)
    by_rank = [batches_of_rank(items, batch_size, rank, world_size) for rank in range(world_size)]
    batches = list(itertools.chain.from_iterable(by_rank))
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(items)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    for batch in batches:
        assert len({(items[i].steps, items[i].factor, items[i].kernel) for i in batch}) == 1
    loads = [len(batches) for batches in by_rank]
    assert max(loads) - min(loads) <= 1


def test_more_ranks_than_items():
    assert [batches_of_rank([make_item()], 16, rank, 2) for rank in range(2)] == [[[0]], []]


def test_a_batch_holds_what_its_items_say():
    clips = make_clips()
    items = [
        make_item(video=2, noise=1, num_frames=3, order="sequential", sigma_h=1.0, sigma_y=0.1, zeta=3.0),
        make_item(video=0, num_frames=1),
    ]
    batch = observation_batch([(item, to_video(clips[item.video])) for item in items], seed=5)
    assert torch.equal(batch.x, to_video(clips[[2, 0]]))
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.sigma_h == [1.0, 2.0]
    torch.testing.assert_close(batch.sigma_y, torch.tensor([0.1, 0.02]))
    assert batch.keys == [(5, 2, 1), (5, 0, 0)]
    assert (batch.zeta.tolist(), batch.steps, batch.size) == ([3.0, 1.0], 5, 2)
    assert (batch.factor, batch.kernel) == (8, "gaussian")


def test_padding_repeats_the_last_sample():
    clips = make_clips()
    samples = [(make_item(video=video), to_video(clips[video])) for video in (0, 1)]
    batch, padded = observation_batch(samples, seed=0), observation_batch(samples, seed=0, pad_to=5)
    assert (padded.size, len(padded.x), len(padded.keys), len(padded.sigma_h)) == (2, 5, 5, 5)
    assert torch.equal(padded.clips, batch.clips)  # whatever is repeated, each clip is there once
    assert padded.clip_of.tolist() == [0, 1, 1, 1, 1]
    assert padded.keys == batch.keys + batch.keys[-1:] * 3


def test_the_dataset_makes_its_batches_and_ends():
    items = [make_item(video=video) for video in range(3)]
    dataset = GridDataset(items, [[0, 2], [1]], make_clips(), seed=0, pad_to=None)
    assert [[video for _, video, _ in batch.keys] for batch in dataset] == [[0, 2], [1]]


class Watched(torch.utils.data.Dataset):
    """Clips that remember which of them were taken."""

    def __init__(self):
        self.taken = []

    def __getitem__(self, index):
        self.taken.append(index)
        return make_clips()[index]


def test_each_clip_is_taken_once_for_all_batches():
    items = [make_item(video=video, num_frames=number) for number in (1, 2) for video in (1, 0, 2)]
    clips = Watched()
    first, second = GridDataset(items, [[0, 1, 3, 4], [2, 5, 0]], clips, seed=0, pad_to=6)
    assert clips.taken == [1, 0, 2]
    for batch, videos in ((first, [1, 0, 1, 0, 0, 0]), (second, [2, 2, 1, 1, 1, 1])):
        assert torch.equal(batch.x, to_video(make_clips()[videos]))
        assert len(batch.clips) == len(set(videos))


def test_so_many_clips_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(grid, "KEPT_VIDEOS", 2)
    clips = Watched()
    list(GridDataset([make_item(video=video) for video in range(3)], [[0], [1], [0], [2], [0, 1]], clips, 0, None))
    assert clips.taken == [0, 1, 2, 1]


def test_random_frames_are_nested_and_belong_to_the_video():
    frames = [frames_of(make_item(video=1, num_frames=n), total=10, seed=0) for n in range(1, 11)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(frames))
    orders = {tuple(frames_of(make_item(video=v, num_frames=10), total=10, seed=0)) for v in range(8)}
    assert len(orders) == 8
    assert {order[0] for order in orders} == {0}


def test_rows_hold_the_item_and_the_columns_of_the_sweep():
    row = row_maker({"seed": 3})(make_item(video=4, order="sequential", factor=4, kernel="box"))
    assert (row["factor"], row["kernel"], row["seed"]) == (4, "box", 3)
    assert (row["video"], row["order"], row["num_frames"]) == (4, "sequential", 2)


def test_a_first_look_has_every_condition_before_any_second_video():
    conditions = [(frames, video, noise) for frames in (1, 3) for video in range(2) for noise in range(2)]
    items = [
        Item(8, "gaussian", f, "random", 2.0, 0.02, "dps", 10, 1.0, video, noise) for f, video, noise in conditions
    ]
    looks = [[conditions[items.index(item)] for item in first_look(items, limit)] for limit in (2, 4, 5)]
    assert looks[0] == [(1, 0, 0), (3, 0, 0)]
    assert looks[1] == [(1, 0, 0), (1, 1, 0), (3, 0, 0), (3, 1, 0)]
    assert set(looks[2]) == {*looks[1], (1, 0, 1)}
    assert first_look(items, None) == first_look(items, 100) == items


def test_several_samplers_are_conditions_of_one_sweep():
    sections = {"a": {"steps": 5, "zeta": 1.0}, "b": {"steps": 7, "zeta": 2.0}}
    items = grid_items(Grid(videos=2, noises=1, factor=[4, 8], zeta=[]), sections, GAUSSIAN)
    assert {(item.sampler, item.steps, item.zeta) for item in items} == {("a", 5, 1.0), ("b", 7, 2.0)}
    assert len(items) == 8
    batches = batches_of_rank(items, batch_size=16, rank=0, world_size=1)
    assert [{items[index].batch_key for index in batch} for batch in batches] == [
        {("a", 5, 4, "gaussian")},
        {("a", 5, 8, "gaussian")},
        {("b", 7, 4, "gaussian")},
        {("b", 7, 8, "gaussian")},
    ]
    both = grid_items(Grid(videos=1, noises=1, steps=[3, 4], zeta=[0.5]), sections, GAUSSIAN)
    assert [(item.sampler, item.steps, item.zeta) for item in both] == [
        ("a", 3, 0.5), ("a", 4, 0.5), ("b", 3, 0.5), ("b", 4, 0.5),
    ]  # fmt: skip


def test_which_samplers_a_sweep_has():
    assert list(sampler_sections(load_config(SWEEP))) == ["dps_restart"]
    named = "samplers.mine={target: vsr_lightning.inference.dps.dps_sample, steps: 3, zeta: 1.0}"
    experiment = load_config(SWEEP, [named, "grid.sampler=[mine]"])
    assert sampler_sections(experiment) == {"mine": experiment.samplers["mine"]}
    with pytest.raises(UserError, match="grid.sampler: 'mind' is not in samplers; did you mean 'mine'"):
        load_config(SWEEP, [named, "grid.sampler=[mind]"])
    del experiment.grid.sampler[0]
    experiment.sampler.clear()
    with pytest.raises(UserError, match="grid.sampler: name the samplers to compare, of mine"):
        sampler_sections(experiment)
    with pytest.raises(UserError, match="samplers.mine.zeal: .* no such parameter"):
        load_config(SWEEP, [named, "samplers.mine.zeal=3"])
