"""A sweep as a dataset: every item once, on any number of ranks, in batches of one shape."""

import itertools
from pathlib import Path

import pytest
import torch

from vsr_lightning.config import Grid, UserError, load_config
from vsr_lightning.data.clips import to_video
from vsr_lightning.evaluation.grid import (
    GridDataset,
    Item,
    batches_of_rank,
    frames_of,
    grid_items,
    observation_batch,
    row_maker,
)

SWEEP = Path(__file__).parents[1] / "experiments" / "moving_mnist" / "sweep_frames.yaml"
SAMPLER = {"steps": 5, "zeta": 1.0}


def make_item(video=0, noise=0, num_frames=2, order="random", sigma_h=2.0, sigma_y=0.02, steps=5, zeta=1.0):
    return Item(num_frames, order, sigma_h, sigma_y, steps, zeta, video, noise)


def make_clips(count=3, frames=4):
    return torch.randint(0, 256, (count, frames, 16, 16, 1), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_the_shipped_sweep_has_1600_items():
    experiment = load_config(SWEEP, ["full=true"])
    items = grid_items(experiment.grid, experiment.sampler)
    assert len(items) == len(set(items)) == 1600
    # The noise instances of a video lie side by side, then the videos of a condition.
    assert [(item.video, item.noise) for item in items[:80]] == list(itertools.product(range(8), range(10)))
    assert {(item.num_frames, item.order) for item in items} == set(
        itertools.product(range(1, 11), ["sequential", "random"])
    )
    assert {(item.sigma_h, item.sigma_y, item.steps, item.zeta) for item in items} == {(2.0, 0.02, 250, 13.0)}


def test_lists_of_the_grid_stand_over_the_sampler():
    grid = Grid(videos=1, noises=1, steps=[10, 20], zeta=[1, 2])
    assert [(item.steps, item.zeta) for item in grid_items(grid, SAMPLER)] == [(10, 1), (10, 2), (20, 1), (20, 2)]
    with pytest.raises(UserError, match="sampler.zeta: missing"):
        grid_items(Grid(), {"steps": 5})


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_no_item_is_lost_or_doubled(world_size, batch_size):
    grid = Grid(videos=3, noises=2, num_frames=[1, 2], steps=[10, 20])
    items = grid_items(grid, SAMPLER)
    by_rank = [batches_of_rank(items, batch_size, rank, world_size) for rank in range(world_size)]
    batches = list(itertools.chain.from_iterable(by_rank))
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(items)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({items[i].steps for i in batch}) == 1 for batch in batches)
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
    batch = observation_batch([(item, clips[item.video]) for item in items], seed=5)
    assert torch.equal(batch.x, to_video(clips[[2, 0]]))
    assert batch.mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.sigma_h == [1.0, 2.0]
    torch.testing.assert_close(batch.sigma_y, torch.tensor([0.1, 0.02]))
    assert batch.keys == [(5, 2, 1), (5, 0, 0)]
    assert (batch.zeta.tolist(), batch.steps, batch.size) == ([3.0, 1.0], 5, 2)


def test_padding_repeats_the_last_sample():
    clips = make_clips()
    samples = [(make_item(video=video), clips[video]) for video in (0, 1)]
    batch, padded = observation_batch(samples, seed=0), observation_batch(samples, seed=0, pad_to=5)
    assert (padded.size, len(padded.x), len(padded.keys), len(padded.sigma_h)) == (2, 5, 5, 5)
    assert torch.equal(padded.x[:2], batch.x)
    assert all(torch.equal(x, batch.x[1]) for x in padded.x[2:])
    assert padded.keys == batch.keys + batch.keys[-1:] * 3


def test_the_dataset_makes_its_batches_and_ends():
    items = [make_item(video=video) for video in range(3)]
    dataset = GridDataset(items, [[0, 2], [1]], make_clips(), seed=0, pad_to=None)
    assert [[video for _, video, _ in batch.keys] for batch in dataset] == [[0, 2], [1]]


def test_random_frames_are_nested_and_belong_to_the_video():
    frames = [frames_of(make_item(video=1, num_frames=n), total=10, seed=0) for n in range(1, 11)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(frames))
    orders = {tuple(frames_of(make_item(video=v, num_frames=10), total=10, seed=0)) for v in range(8)}
    assert len(orders) == 8
    assert {order[0] for order in orders} == {0}


def test_rows_hold_the_item_and_the_columns_of_the_sweep():
    row = row_maker({"factor": 8, "seed": 3})(make_item(video=4, order="sequential"))
    assert (row["factor"], row["seed"], row["video"], row["order"], row["num_frames"]) == (8, 3, 4, "sequential", 2)
