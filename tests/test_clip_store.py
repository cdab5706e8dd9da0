"""Clip stores: what is written is read, an interruption leaves nothing, and every kind of bad file is told."""

import errno
import hashlib
import os
import pickle
import resource
import signal
import socket
import subprocess

import h5py
import numpy as np
import pytest
import torch

from vsr_lightning.data import clip_store
from vsr_lightning.data.clip_store import ClipStore, StoreWriter, write_store
from vsr_lightning.errors import UserError


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6, 2), np.uint8)


@pytest.fixture
def store(tmp_path, video):
    path = tmp_path / "store.h5"
    write_store(path, iter([video[:3], video[3:]]), name="noise", source="numpy", frames_per_second=5)
    return path


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


def test_ctrl_c_while_hdf5_writes_is_not_lost_in_it(tmp_path, video, monkeypatch):
    write = clip_store._Disk.write

    def interrupted(disk, data):
        signal.raise_signal(signal.SIGINT)
        return write(disk, data)

    monkeypatch.setattr(clip_store._Disk, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "store.h5", [video], name="", source="")
    finally:
        signal.signal(signal.SIGINT, before)
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


@pytest.fixture
def limit_files():
    """A function that lets no file grow beyond so many bytes, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 100, 1_500, 5_600, 100_000, 740_000])
def test_a_full_disk_names_the_store_and_leaves_the_old_one(tmp_path, limit_files, num_bytes):
    path = tmp_path / "store.h5"
    large = np.random.default_rng(1).integers(0, 256, (1, 30, 64, 64, 3), np.uint8)
    write_store(path, [large], name="old", source="")
    limit_files(num_bytes)
    with pytest.raises(OSError) as raised:
        write_store(path, [{"video": large, "action": np.ones((1, 30, 4))}] * 4, name="new", source="")
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert ClipStore(path).attributes["name"] == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_that_a_full_disk_left_gaps_in_is_never_put_in_place(tmp_path, limit_files):
    """Even where there is room again before the next write."""
    large = np.zeros((1, 30, 64, 64, 3), np.uint8)
    with StoreWriter(tmp_path / "store.h5", name="", source="") as writer:
        writer.append(large)
        limit_files(400_000)
        with pytest.raises(OSError, match="File too large"):
            writer.append(np.tile(large, (3, 1, 1, 1, 1)))
        limit_files(resource.RLIM_INFINITY)
        with pytest.raises(OSError, match="File too large"):
            writer.commit()
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


def _without(attribute):
    def spoil(path):
        with h5py.File(path, "a") as file:
            del file.attrs[attribute]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("camera"), "not a clip store .*camera"),
        (_without("source"), "not a clip store .*source"),
        (_another_format, "another version .store format 2, not 1.; delete"),
        (_without("format"), "another version .store format none, not 1.; delete"),
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
