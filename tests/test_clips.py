"""Pixels as video, batches that depend on the step alone, and the DataModule base."""

from itertools import islice

import lightning
import pytest
import torch

from vsr_lightning.data.clips import ClipDataModule, StepBatchSampler, to_uint8, to_video
from vsr_lightning.errors import UserError

# -- pixels


def test_to_video_and_back_is_exact():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 2, 8, 8, 2)
    video = to_video(pixels)
    assert video.shape == (1, 2, 2, 8, 8)
    assert video.dtype == torch.float32
    assert (video.min(), video.max()) == (-1, 1)
    assert torch.equal(to_uint8(video), pixels)


def test_to_uint8_clamps_and_rounds():
    video = torch.tensor([-3.0, -1, 0.99, 3]).reshape(1, 1, 2, 2)
    assert to_uint8(video).flatten().tolist() == [0, 0, 254, 255]


# -- batches


@pytest.mark.parametrize("num_items", [None, 1, 7, 100])
@pytest.mark.parametrize("start", [0, 1, 5, 23])
def test_batches_are_the_same_from_any_start(num_items, start):
    whole = islice(StepBatchSampler(num_items, 4, seed=3, rank=1, world_size=2), start, start + 6)
    resumed = islice(StepBatchSampler(num_items, 4, seed=3, start_step=start, rank=1, world_size=2), 6)
    assert list(whole) == list(resumed)


@pytest.mark.parametrize("num_items", [None, 10])
def test_ranks_split_the_batch_of_one_process(num_items):
    one = StepBatchSampler(num_items, 6, seed=0)
    ranks = [StepBatchSampler(num_items, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
    for step in range(8):
        assert one.batch_at(step) == sum((rank.batch_at(step) for rank in ranks), [])


def test_every_epoch_visits_every_item_once():
    order = sum(islice(StepBatchSampler(10, 4, seed=0), 10), [])
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert sum(islice(StepBatchSampler(10, 4, seed=1), 10), []) != order


def test_endless_batches_count_upwards():
    assert list(islice(StepBatchSampler(None, 3, seed=0), 2)) == [[0, 1, 2], [3, 4, 5]]


def test_no_items_is_an_error():
    with pytest.raises(UserError, match="empty"):
        StepBatchSampler(0, 3, seed=0)


# -- the data module


class Numbers(torch.utils.data.Dataset):
    """Clip i has the value i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((1, 1, 1, 1), index, dtype=torch.uint8)


class NumbersModule(ClipDataModule):
    def train_clips(self):
        return Numbers(50)

    def val_clips(self):
        return Numbers(20)

    test_clips = clips_name = fetch = None  # not needed here


def as_numbers(batch):
    return ((batch + 1) * 127.5).round().int().flatten().tolist()


class Recorder(lightning.LightningModule):
    """Records what reaches the training and the validation step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        assert batch.shape == (4, 1, 1, 1, 1)
        self.seen.append(as_numbers(batch))
        return self.weight * batch.mean()

    def validation_step(self, batch, batch_idx):
        self.validated += as_numbers(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(steps, tmp_path, checkpoint=None, accumulate=1):
    module = Recorder()
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=steps * accumulate,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = NumbersModule(batch_size=4, num_workers=0, val_videos=10)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_training_sees_what_it_would_have_seen(tmp_path, accumulate):
    whole = train(17, tmp_path, accumulate=accumulate)
    train(5, tmp_path, accumulate=accumulate)
    resumed = train(17, tmp_path, tmp_path / "5.ckpt", accumulate)
    assert len(whole.seen) == 17 * accumulate
    assert resumed.seen == whole.seen[5 * accumulate :]
    assert whole.validated == list(range(10))


def test_validation_is_shared_among_ranks_without_repetition():
    def validated(rank, world_size, val_videos):
        data = NumbersModule(batch_size=4, num_workers=0, val_videos=val_videos)
        data.trainer = type("Trainer", (), {"global_rank": rank, "world_size": world_size})()
        return [int(clip) for batch in data.val_dataloader() for clip in batch.flatten()]

    assert validated(1, 2, 10) == [1, 3, 5, 7, 9]
    shards = [validated(rank, 3, 11) for rank in range(3)]
    assert {len(shard) for shard in shards} == {3}  # as many for each, none twice
    assert sorted(sum(shards, [])) == list(range(9))
    with pytest.raises(UserError, match="val_videos"):
        validated(0, 3, 2)


@pytest.mark.parametrize("key", ["batch_size", "val_videos", "num_frames", "num_workers", "seed"])
def test_bad_sizes_name_the_key(key):
    with pytest.raises(UserError, match=f"data.{key}"):
        NumbersModule(**{"batch_size": 4, key: -1})
