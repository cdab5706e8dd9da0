"""Simulated pushing as a dataset. Tests marked `sim` need MuJoCo and an OpenGL library: `make test-sim`."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vsr_lightning.data import push_sim, push_simulator
from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.data.push_sim import PushSim
from vsr_lightning.errors import UserError

sim = pytest.mark.sim
TINY = {"train_trajectories": 2, "val_trajectories": 1, "test_trajectories": 1, "trajectory_frames": 4, "processes": 1}


def tiny_module(tmp_path, **changes) -> PushSim:
    return PushSim(batch_size=2, num_frames=2, num_workers=0, dir=str(tmp_path), **{**TINY, **changes})


# -- without OpenGL


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train_trajectories": 0}, "data.train_trajectories"),
        ({"trajectory_frames": 1}, "data.trajectory_frames"),
        ({"simulation_seed": -1}, "data.simulation_seed"),
        ({"processes": -1}, "data.processes"),
        ({"camera": "image_aux1"}, "data.camera: simulated clips are of 'front', not 'image_aux1'"),
        ({"source": "archive.tar"}, "data.source"),
    ],
)
def test_bad_values_name_the_key(tmp_path, changes, key):
    with pytest.raises(UserError, match=key):
        tiny_module(tmp_path, **changes)


def test_without_mujoco_the_way_to_get_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"pip install .*sim"):
        tiny_module(tmp_path).fetch()
    assert not list(tmp_path.iterdir())


def test_without_stores_training_names_the_way_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"push_sim-train.h5.*make data-sim"):
        tiny_module(tmp_path).train_clips()


def test_stores_of_other_settings_elsewhere_are_second_to_what_data_dir_lacks(stores, monkeypatch):
    monkeypatch.setenv("VSR_DATA_DIR", str(stores))
    expected = r"^push_sim-train.h5: not in mine; simulate it: .* data.dir=mine .* found .*: is simulated, seed 0"
    with pytest.raises(UserError, match=expected):
        tiny_module("mine", simulation_seed=1).train_clips()


class StandIn:
    """For the simulator: it runs where there is neither MuJoCo nor OpenGL."""

    frames_per_second = 5.0
    renderer = "a stand-in"

    def close(self) -> None:
        pass


def stand_in_split(split, seed, count, num_frames, processes):
    for index in range(count):
        yield {"video": np.full((num_frames, 64, 64, 3), index + 1, np.uint8)}


@pytest.fixture
def stand_in(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(push_sim, "PushSimulator", StandIn)
        patch.setattr(push_sim, "simulate_split", stand_in_split)
        yield patch


@pytest.fixture
def stores(tmp_path, stand_in, monkeypatch):
    """The folder of stores that the stand-in has made, with the means to make more taken away."""
    tiny_module(tmp_path).fetch()
    stand_in.undo()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    return tmp_path


def test_stores_that_are_there_are_verified_without_mujoco(stores, capsys):
    tiny_module(stores).fetch()
    assert capsys.readouterr().out.count("is there and verified") == 3


def test_stores_that_are_there_are_looked_at_before_others_are_simulated(stores):
    (stores / "push_sim-train.h5").unlink()
    with pytest.raises(UserError, match=r"push_sim-val.h5.*delete it"):
        tiny_module(stores, simulation_seed=1).fetch()


def test_stores_of_an_earlier_version_of_the_simulation_are_refused(stores, monkeypatch):
    source = ClipStore(stores / "push_sim-train.h5").attributes["source"]
    assert source == "simulated, seed 0, 2 trajectories of 4 frames"  # as it was before there were versions
    monkeypatch.setattr(push_simulator, "VERSION", 2)
    for use in ("fetch", "train_clips"):
        with pytest.raises(UserError, match=r"train.h5: is simulated, seed 0, .* not simulated, version 2, seed"):
            getattr(tiny_module(stores), use)()


def test_pictures_that_an_interruption_left_missing_are_drawn(tmp_path, stand_in, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    draw = push_sim.draw_samples
    monkeypatch.setattr(push_sim, "draw_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_module(tmp_path).fetch()
    monkeypatch.setattr(push_sim, "draw_samples", draw)
    picture = tmp_path / "push_sim-train.png"
    assert picture.with_suffix(".h5").exists()
    assert not picture.exists()
    tiny_module(tmp_path).fetch()
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert np.unique(np.asarray(Image.open(picture))).tolist() == [1, 2]  # the brightness of both its trajectories
    drawn = picture.stat().st_mtime_ns
    tiny_module(tmp_path).fetch()
    assert picture.stat().st_mtime_ns == drawn


def test_a_new_store_has_a_new_picture(tmp_path, stand_in):
    (tmp_path / "push_sim-test.png").write_text("of an earlier store")
    tiny_module(tmp_path).fetch()
    assert Image.open(tmp_path / "push_sim-test.png").size == (4 * 128, 128)


def test_no_picture_is_drawn_where_data_is_only_read(stores, tmp_path_factory, monkeypatch):
    for picture in stores.glob("*.png"):
        picture.unlink()
    monkeypatch.setenv("VSR_DATA_DIR", str(stores))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    tiny_module("").fetch()
    assert not list(stores.glob("*.png"))


# -- with OpenGL


@sim
def test_fetch_simulates_once_and_refuses_other_settings(tmp_path, capsys):
    tiny_module(tmp_path).fetch()
    store = ClipStore(tmp_path / "push_sim-train.h5")
    assert store.shape == (2, 4, 64, 64, 3)
    assert store.attributes["camera"] == "front"
    assert "mujoco" in store.attributes["created_by"]
    picture = np.asarray(Image.open(tmp_path / "push_sim-train.png"))
    np.testing.assert_array_equal(picture[:128:2, :128:2], store[0][0])
    np.testing.assert_array_equal(picture[128::2, 384::2], store[1][3])
    before = (tmp_path / "push_sim-train.h5").stat().st_mtime_ns
    tiny_module(tmp_path).fetch()
    assert capsys.readouterr().out.count("is there and verified") == 3
    assert (tmp_path / "push_sim-train.h5").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"push_sim-train.h5.*delete it"):
        tiny_module(tmp_path, simulation_seed=1).fetch()
    assert tiny_module(tmp_path).clips_name("test") == "push_sim test"
    assert tiny_module(tmp_path).test_clips()[0].shape == (2, 64, 64, 3)


@sim
def test_too_little_disk_is_told_before_anything_is_simulated(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100_000))
    with pytest.raises(UserError, match=r"MB are needed.*data.dir"):
        tiny_module(tmp_path, train_trajectories=10).fetch()
    assert not list(tmp_path.iterdir())


@sim
def test_an_unknown_backend_is_one_line(tmp_path):
    command = [sys.executable, "-m", "vsr_lightning", "data", "experiments/push_sim/data.yaml", f"data.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "", "MUJOCO_GL": "none-such"})
    assert done.returncode == 2
    assert done.stderr == "error: MUJOCO_GL=none-such: is none of egl, osmesa, glfw\n"
    assert not list(tmp_path.iterdir())


@sim
def test_missing_opengl_names_the_packages(tmp_path, monkeypatch):
    mujoco = push_simulator._import_mujoco()  # not by itself: the backend is chosen once in a process, at its import

    def fail(*args):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")  # PyOpenGL without a library

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(UserError, match=r"glGetError.*apt-get install libosmesa6"):
        tiny_module(tmp_path).fetch()
    assert not list(tmp_path.iterdir())
