"""Clip stores, batches that depend on the step alone, and the DataModule base."""

import hashlib
import http.server
import os
import pickle
import socket
import subprocess
import threading
from functools import partial
from itertools import islice

import h5py
import lightning
import numpy as np
import pytest
import torch

from vsr_lightning.config import UserError
from vsr_lightning.data import clips
from vsr_lightning.data.clips import (
    ClipDataModule,
    ClipStore,
    StepBatchSampler,
    StoreWriter,
    to_uint8,
    to_video,
    write_store,
)


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6, 2), np.uint8)


@pytest.fixture
def store(tmp_path, video):
    path = tmp_path / "store.h5"
    write_store(path, iter([video[:3], video[3:]]), name="noise", source="numpy", frames_per_second=5)
    return path


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


# -- where data lies


def test_directories_in_order_of_precedence(monkeypatch):
    monkeypatch.setenv("VSR_DATA_DIR", "shared")
    assert [str(folder) for folder in clips.read_dirs("mine")] == ["mine", "shared", "data"]
    assert str(clips.write_dir("mine")) == "mine"
    assert str(clips.write_dir()) == "data"  # never $VSR_DATA_DIR
    monkeypatch.delenv("VSR_DATA_DIR")
    assert [str(folder) for folder in clips.read_dirs()] == ["data"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a local web server that has `file.bin`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "file.bin").write_bytes(b"digits")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def url_infos(url, content):
    from tensorflow_datasets.core.download.checksums import UrlInfo

    return {url: UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename="file.bin")}


def test_download_through_tfds(tmp_path, server):
    url, path = f"{server}/file.bin", tmp_path / "got" / "file.bin"
    clips.download(url, path, url_infos(url, b"digits"))
    assert path.read_bytes() == b"digits"
    assert list(path.parent.iterdir()) == [path]  # no cache, no temporary folder


def test_download_with_another_checksum_leaves_nothing(tmp_path, server):
    url, path = f"{server}/file.bin", tmp_path / "got" / "file.bin"
    with pytest.raises(UserError, match="failed"):
        clips.download(url, path, url_infos(url, b"others"))
    assert not list(path.parent.iterdir())


def test_download_gives_up_at_once_without_the_file(tmp_path, server):
    with pytest.raises(UserError, match="out of reach"):
        clips.download(f"{server}/missing", tmp_path / "file.bin", {})
    with pytest.raises(UserError, match="out of reach"):  # answers, but with less than asked for
        clips.download(f"{server}/file.bin", tmp_path / "file.bin", {}, first_bytes=100)


# -- the store


def test_store_round_trip(store, video):
    read = ClipStore(store)
    read.verify()
    assert len(read) == 5
    assert read.shape == video.shape
    assert all(np.array_equal(read[i].numpy(), video[i]) for i in range(5))
    with h5py.File(store) as file:
        assert file["video"].chunks == (1, *video.shape[1:])
        assert dict(file.attrs) == {
            "format": 1,
            "name": "noise",
            "source": "numpy",
            "sha256": hashlib.sha256(video.tobytes()).hexdigest(),
            "camera": "",
            "frames_per_second": 5,
            "created_by": "vsr_lightning",
        }


def test_store_keeps_what_goes_with_the_video(tmp_path, video):
    action = np.ones((5, 3, 4), np.float32)
    write_store(tmp_path / "a.h5", [{"video": video, "action": action}], name="a", source="")
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["action"], action)


def test_store_opens_in_the_process_that_reads(store, video):
    read = ClipStore(store)
    assert read._file is None  # nothing open to be inherited by a worker
    read[0]
    copy = pickle.loads(pickle.dumps(read))
    assert np.array_equal(copy[4].numpy(), video[4])
    loader = torch.utils.data.DataLoader(read, batch_size=5, num_workers=1)  # forked with a file open
    assert np.array_equal(next(iter(loader)).numpy(), video)


def test_some_frames_of_a_clip(store, video):
    assert np.array_equal(ClipStore(store).frames(4, 1, 2).numpy(), video[4, 1:3])


def test_interrupted_write_leaves_nothing(tmp_path, video):
    def chunks():
        yield video
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store.h5", chunks(), name="", source="")
    assert not list(tmp_path.iterdir())


def test_interrupted_write_keeps_the_old_store(store, video):
    with pytest.raises(ValueError, match="uint8"):
        write_store(store, [video.astype(np.float32)], name="", source="")
    with pytest.raises(UserError, match="no clips"):
        write_store(store, [], name="", source="")
    ClipStore(store).verify()
    assert list(store.parent.iterdir()) == [store]


def test_what_was_not_committed_is_not_there(tmp_path, video):
    with StoreWriter(tmp_path / "store.h5", name="", source="") as writer:
        writer.append(video)
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_leftovers_of_dead_processes_go(tmp_path, video):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    (tmp_path / f".store.h5.{host}-{ended.pid}.part").touch()
    alive = [f".store.h5.{host}-{os.getppid()}.part", f".store.h5.elsewhere-{ended.pid}.part"]
    for name in alive:
        (tmp_path / name).touch()
    write_store(tmp_path / "store.h5", [video], name="", source="")
    assert {path.name for path in tmp_path.iterdir()} == {"store.h5", *alive}


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _another_layout(path):
    with h5py.File(path, "w") as file:
        file["video"] = np.zeros((2, 3, 8, 6), np.float32)


def _another_format(path):
    with h5py.File(path, "a") as file:
        file.attrs["format"] = 2


def _no_format(path):
    with h5py.File(path, "a") as file:
        del file.attrs["format"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_another_format, "another version .store format 2, not 1.; delete"),
        (_no_format, "another version .store format none, not 1.; delete"),
        (lambda path: path.unlink(), "no such"),
        (lambda path: path.write_text("text"), "not an HDF5"),
        (_truncate, "truncated"),
        (_another_layout, "not a clip store"),
    ],
)
def test_bad_store_is_one_line_with_its_name(store, spoil, message):
    spoil(store)
    with pytest.raises(UserError, match=message) as error:
        ClipStore(store)
    assert str(store) in str(error.value)
    assert "\n" not in str(error.value)


def test_altered_store_does_not_verify(store):
    with h5py.File(store, "a") as file:
        file["video"][2, 0, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match="altered"):
        ClipStore(store).verify()


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
