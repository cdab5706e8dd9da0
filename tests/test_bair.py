"""BAIR robot pushing from its archive, made here in its true layout, to clips: the whole path, and interruptions."""

import errno
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from killing import finish, start
from making_bair import CONTENTS, TRAJECTORIES, fetch, files, write_folder, write_tar

from vsr_lightning.__main__ import main
from vsr_lightning.config import load_config
from vsr_lightning.data import bair, clip_store
from vsr_lightning.data.bair import BAIR, split_of
from vsr_lightning.data.bair_archive import Record, read_archive
from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation.run import sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments/bair"
DATA_YAML = str(EXPERIMENTS / "data.yaml")
STORES = ["data/bair-test.h5", "data/bair-train.h5", "data/bair-val.h5"]


@pytest.fixture
def tar(tmp_path):
    return write_tar(tmp_path / "given" / "archive.tar")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def remove(paths):
    for path in paths:
        Path(path).unlink()


# -- the whole path


@pytest.mark.parametrize("camera", ["image_aux1", "image_main"])
@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_every_number_of_every_trajectory_arrives(tmp_path, write, camera):
    fetch(write(tmp_path / "given" / "source"), camera=camera)
    expected = {
        # The last of every three of a file is validation.
        "train": [TRAJECTORIES["train/traj_0_to_4"][i] for i in (0, 1, 3, 4)] + TRAJECTORIES["train/traj_5_to_7"][:2],
        "val": [TRAJECTORIES["train/traj_0_to_4"][2], TRAJECTORIES["train/traj_5_to_7"][2]],
        "test": TRAJECTORIES["test/traj_0_to_1"],
    }
    assert files() == STORES
    for split, trajectories in expected.items():
        with h5py.File(f"data/bair-{split}.h5") as file:
            assert np.array_equal(file["video"], [trajectory[camera] for trajectory in trajectories])
            for key in ("action", "endeffector_pos"):
                assert np.array_equal(file[key], [trajectory[key] for trajectory in trajectories])
                assert file[key].dtype == np.float32
            assert file["video"].chunks == (1, 30, 64, 64, 3)
            assert (file.attrs["camera"], file.attrs["name"]) == (camera, f"bair-{split}")
        ClipStore(f"data/bair-{split}.h5").verify()


def test_clips_of_the_data_module(tar):
    data = fetch(tar)
    train, first = data.train_clips(), TRAJECTORIES["train/traj_0_to_4"][0]["image_aux1"]
    assert (len(train), len(data.val_clips()), len(data.test_clips())) == (18, 6, 6)
    assert np.array_equal(train[6].numpy(), first[10:20])
    assert data.clips_name("test") == "bair test"
    assert BAIR(batch_size=1, camera="image_main").clips_name("val") == "bair image_main val"


def test_order_and_number_of_files_do_not_change_the_split(tmp_path, tar):
    def split(source):
        return {hashlib.sha256(record.data).digest(): split_of(record, 3) for record in read_archive(source)}

    whole = split(tar)
    assert len(whole) == 10
    backwards = write_tar(tmp_path / "b.tar", dict(reversed(CONTENTS.items())))
    assert split(backwards) == whole
    assert split(write_folder(tmp_path / "f") / "softmotion30_44k") == whole
    part = {name: CONTENTS[name] for name in ("train/traj_5_to_7",)}
    assert split(write_tar(tmp_path / "p.tar", part)).items() < whole.items()


def test_about_a_thousand_of_bairs_trajectories_are_validation():
    counts = {"train": 0, "val": 0}
    for number in range(256):
        counts[split_of(Record(b"", "train", number, ""), BAIR(batch_size=1).val_every)] += 169
    assert counts == {"train": 42_250, "val": 1_014}


@pytest.mark.parametrize("wrong", [{"camera": "front"}, {"camera": ""}, {"val_every": 1}])
def test_bad_values_name_the_key(wrong):
    with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
        BAIR(batch_size=1, **wrong)


# -- where the source is found, and what is already there


@pytest.mark.parametrize("place", ["data.source", "$VSR_DATA_DIR", "data.dir", "data"])
@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_places_of_the_source(tmp_path, monkeypatch, capsys, place, write):
    folder = {"data": Path("data")}.get(place, tmp_path / "given")
    write(folder / bair.ARCHIVE if write is write_tar else folder)
    if place == "$VSR_DATA_DIR":
        monkeypatch.setenv("VSR_DATA_DIR", str(folder))
    inner = folder / (bair.ARCHIVE if write is write_tar else bair.FOLDER)  # the folder that is softmotion30_44k
    fetch(inner if place == "data.source" else "", dir=str(folder) if place == "data.dir" else "")
    stores = folder if place == "data.dir" else Path("data")
    assert f"{stores / 'bair-train.h5'}: 6 trajectories of 30 frames, image_aux1" in capsys.readouterr().out
    assert (stores / "bair-val.h5").is_file()


def test_stores_that_are_there_are_verified_and_kept(tar, capsys):
    fetch(tar)
    before = [os.stat(store).st_mtime_ns for store in STORES]
    tar.unlink()
    capsys.readouterr()
    fetch(tar)
    assert [os.stat(store).st_mtime_ns for store in STORES] == before
    out = capsys.readouterr().out
    assert all(f"{store} is there and verified" in out for store in STORES)
    with h5py.File("data/bair-val.h5", "a") as file:
        file["video"][1, 29, 63, 63, 2] ^= 1
    with pytest.raises(UserError, match="data/bair-val.h5: altered"):
        fetch(tar)


def test_nothing_is_restored_of_clips_that_were_altered(tar, tiny_rgb_prior):
    fetch(tar)
    settings = ["full=true", "trainer.accelerator=cpu", "logging.mode=disabled", "data.val_every=3", "grid.videos=1"]
    experiment = load_config(EXPERIMENTS / "eval.yaml", [f"prior={tiny_rgb_prior}", *settings])
    with h5py.File("data/bair-test.h5", "a") as file:
        file["video"][0, 0, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match="data/bair-test.h5: altered since it was written"):
        sweep(experiment)
    assert not Path("runs").exists()


def test_stores_of_another_camera_or_version_are_not_overwritten(tar):
    fetch(tar)
    with pytest.raises(UserError, match="is of camera 'image_aux1', not 'image_main'; set data.camera=image_aux1"):
        fetch(tar, camera="image_main")
    with h5py.File("data/bair-train.h5", "a") as file:
        file.attrs["format"] = 99
    with pytest.raises(UserError, match="bair-train.h5: written by another version .*delete and rebuild it"):
        fetch(tar)
    assert files() == STORES


def test_stores_of_another_source_or_split_are_not_taken_for_this_one(tar, tmp_path):
    fetch(tar)
    fetch()  # nothing named: what is there will do
    other = tmp_path / "other.tar"
    other.write_bytes(tar.read_bytes())
    with pytest.raises(UserError, match=r"made from .*other.tar.*delete"):
        fetch(other)
    with pytest.raises(UserError, match=r"validation every .*delete"):
        fetch(tar, val_every=7)


@pytest.mark.parametrize("place", ["data.source", "data"])
def test_stores_of_another_source_are_not_replaced_where_that_of_training_is_missing(tar, tmp_path, place):
    fetch(tar)
    remove(["data/bair-train.h5"])
    if place == "data":
        write_folder(Path("data"))
    given = {"data.source": write_tar(tmp_path / "other.tar"), "data": ""}[place]
    before = {store: Path(store).read_bytes() for store in (STORES[0], STORES[2])}
    with pytest.raises(UserError, match=r"bair-(val|test).h5: made from archive.tar, .*delete"):
        fetch(given)
    assert {store: Path(store).read_bytes() for store in before} == before
    fetch(tar)  # of the same, as an interruption leaves them
    assert set(STORES) <= {*files()}


def test_nothing_is_trained_on_stores_of_another_source_or_split(tar, tmp_path):
    fetch(tar)
    tar.unlink()  # the stores are enough
    assert len(BAIR(batch_size=1, val_every=3, source=str(tar)).train_clips()) == 18
    for keys in ({"val_every": 7}, {"val_every": 3, "source": "other.tar"}):
        for split in ("train", "val", "test"):
            with pytest.raises(UserError, match=f"bair-{split}.h5: made from archive.tar, .* 3, not from"):
                getattr(BAIR(batch_size=1, **keys), f"{split}_clips")()


def test_a_folder_that_holds_the_records_is_known_again(tmp_path):
    source = write_folder(tmp_path / "given")
    fetch(source)
    assert len(fetch(source).train_clips()) == 18
    assert len(fetch(source / bair.FOLDER).train_clips()) == 18


def test_other_stores_are_made_in_a_folder_of_their_own(tar):
    fetch(tar)
    with pytest.raises(UserError, match=r"^bair-train.h5: not in mine; make data-bair.* data.dir=mine .*made from"):
        BAIR(batch_size=1, val_every=4, dir="mine").train_clips()
    fetch(tar, val_every=4, dir="mine")
    assert files() == [*STORES, *(store.replace("data", "mine") for store in STORES)]


def test_numbers_other_than_bairs_are_a_warning(tar, capsys, monkeypatch):
    fetch(tar)
    warnings = capsys.readouterr().err
    assert "warning: 8 trajectories in train/, not BAIR's 43,264" in warnings
    assert "warning: 2 trajectories in test/, not BAIR's 256" in warnings
    monkeypatch.setattr(bair, "EXPECTED", {"train": 8, "test": 2})
    remove(STORES)
    fetch(tar)
    assert files() == STORES
    assert "warning" not in capsys.readouterr().err


def test_a_split_without_trajectories_is_no_file_and_said(tar, capsys):
    data = fetch(tar, val_every=6)
    assert files() == STORES[:2]
    assert "bair-val.h5: not written: no trajectories for it, since no file of train/ has 6" in capsys.readouterr().out
    with pytest.raises(UserError, match="bair-val.h5: not in .*, where bair-train.h5 is; .* a lower data.val_every"):
        data.val_clips()
    for store in STORES[:2]:
        Path(store).unlink()
    with pytest.raises(UserError, match="bair-val.h5: not in .*make data-bair.*make data-sim"):
        data.val_clips()
    data = fetch(tar, val_every=6)
    fetch(tar, val_every=6)
    assert "bair-val.h5 is not there" in capsys.readouterr().out


# -- space


def test_too_little_space_is_found_before_anything_is_written(tar, monkeypatch):
    asked = []

    def disk_usage(path):
        asked.append(Path(path))
        return SimpleNamespace(free=2_000_000)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    needed = tar.stat().st_size / 2 / 1e6
    with pytest.raises(UserError, match=rf"new/data: {needed:.1f} MB are needed, 2.0 MB are free; make room"):
        fetch(tar, dir="new/data")
    with pytest.raises(UserError, match="data: 48.4 GB are needed"):  # the archive and the stores
        fetch()
    assert asked == [Path.cwd(), Path.cwd()]  # the disk of folders that are not there yet
    assert list(Path().iterdir()) == []


def test_the_stores_take_no_more_than_foreseen(tar):
    fetch(tar)
    # Beside the trajectories each of the files, here tiny ones, has a header.
    assert sum(os.path.getsize(store) for store in STORES) < bair.STORED_SHARE * tar.stat().st_size + 3 * 30_000


def test_a_read_only_folder_is_one_line(tar, tmp_path, monkeypatch, capsys):
    arguments = ["data", DATA_YAML, f"data.source={tar}"]
    assert main([*arguments, f"data.dir={tar}/stores"]) == 2  # not even root can write there
    assert capsys.readouterr().err == f"error: {tar}/stores: Not a directory\n"

    def read_only(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(clip_store, "_Disk", read_only)
    assert main([*arguments, f"data.dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Read-only file system\n"


# -- interruptions


def test_an_interrupted_conversion_leaves_nothing_and_can_be_repeated(tar, monkeypatch):
    parse = bair.parse_trajectory

    def interrupted(record, camera):
        if record.name.endswith("traj_5_to_7.tfrecords: record 1"):
            assert len(files()) == 3  # temporary ones
            raise KeyboardInterrupt
        return parse(record, camera)

    monkeypatch.setattr(bair, "parse_trajectory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tar)
    assert files() == []
    monkeypatch.setattr(bair, "parse_trajectory", parse)
    fetch(tar)
    assert files() == STORES


def test_an_interruption_between_the_stores_is_made_good(tar, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        if Path(target).name == "bair-train.h5":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tar)
    assert "data/bair-train.h5" not in files()  # the last one, whose presence says that all are there
    monkeypatch.setattr(os, "replace", replace)
    fetch(tar)
    assert files() == STORES


STALLING = """
import sys, time
from vsr_lightning.data import bair
parse = bair.parse_trajectory
def stalling(record, camera):
    if record.name.endswith("traj_5_to_7.tfrecords: record 1"):
        print("stalls", flush=True)
        time.sleep(60)
    return parse(record, camera)
bair.parse_trajectory = stalling
bair.BAIR(batch_size=2, val_every=3, source=sys.argv[1]).fetch()
"""


def test_after_a_kill_the_same_command_completes(tar):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", STALLING, str(tar)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    with process:
        assert process.stdout.readline() == b"stalls\n"
        process.send_signal(signal.SIGKILL)
    assert len(files()) == 3
    assert all(name.endswith(".part") for name in files())
    assert main(["data", DATA_YAML, f"data.source={tar}", "data.val_every=3", "grid.videos=1"]) == 0
    assert files() == STORES
    for store in STORES:
        ClipStore(store).verify()


def test_a_full_disk_is_one_line_and_the_same_command_completes(tar, tmp_path):
    """The kernel lets no file grow beyond 1 MB: the store of the six training trajectories stops in the middle."""
    log, folder = tmp_path / "log.txt", tmp_path / "stores"
    arguments = ["data", DATA_YAML, f"data.source={tar}", "data.val_every=3", f"data.dir={folder}"]
    assert finish(start(arguments, log, bytes_a_file=1_000_000)) == 2
    *bars, line = log.read_text().splitlines()
    assert line == f"error: {folder}/bair-train.h5: File too large; make room, then type the same command again"
    assert all(bar.startswith(f"{tar.name}: ") or not bar for bar in bars), log.read_text()
    assert files(folder) == []
    assert main(arguments) == 0
    assert len(files(folder)) == 3


# -- the download


def test_without_network_and_data_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # refuses connections
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1e12))
    assert main(["data", DATA_YAML]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bair_robot_pushing_dataset_v0.tar: out of reach" in line
    assert "data.source=" in line
    assert "make data-sim" in line
    assert files() == []


def test_download_is_converted_and_kept_for_another_time(tar, monkeypatch, capsys):
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.datasets.bair_robot_pushing_small import bair_robot_pushing_small_dataset_builder as tfds

    assert tfds.Builder.url_infos[tfds.DATA_URL].size == 32_274_964_480  # TFDS knows it
    content = tar.read_bytes()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tar.parent)
    monkeypatch.setattr(handler.func, "log_message", lambda *args: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/archive.tar"
        info = UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename="archive.tar")
        monkeypatch.setattr(tfds, "DATA_URL", url)
        monkeypatch.setattr(tfds, "Builder", SimpleNamespace(url_infos={url: info}))
        fetch()
        server.shutdown()
    assert files() == sorted([*STORES, f"data/{bair.ARCHIVE}"])
    assert f"data/{bair.ARCHIVE}: downloaded and verified" in capsys.readouterr().out
    assert Path("data", bair.ARCHIVE).read_bytes() == content
    remove(STORES)
    fetch(camera="image_main")  # the server is gone
    assert files() == sorted([*STORES, f"data/{bair.ARCHIVE}"])
