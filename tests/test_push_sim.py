"""Simulated pushing. Tests marked `sim` need MuJoCo and an OpenGL library: `make test-sim`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vsr_lightning.config import UserError
from vsr_lightning.data import push_sim
from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.data.clips import to_video
from vsr_lightning.data.push_scene import POOL_SIZE, TRAY_HALF, make_model
from vsr_lightning.data.push_sim import PushSim, PushSimulator, make_plan, simulate_split
from vsr_lightning.degradation.downsample import Downsample, upsample_bicubic
from vsr_lightning.metrics import psnr

sim = pytest.mark.sim
TINY = {"train_trajectories": 2, "val_trajectories": 1, "test_trajectories": 1, "trajectory_frames": 4, "processes": 1}


@pytest.fixture(scope="module")
def simulator() -> Iterator[PushSimulator]:
    simulator = PushSimulator()
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def trajectories(simulator: PushSimulator) -> list[dict[str, np.ndarray]]:
    return [simulator.trajectory((0, 2, index), 30) for index in range(8)]


def tiny_module(tmp_path, **changes) -> PushSim:
    return PushSim(batch_size=2, num_frames=2, num_workers=0, dir=str(tmp_path), **{**TINY, **changes})


# ------------------------------------------------------------------------------------------ without OpenGL


def test_plans_seek_objects_and_stay_within_reach():
    rng = np.random.default_rng(0)
    objects = rng.uniform(-TRAY_HALF, TRAY_HALF, (6, 2))
    plans = [make_plan(rng, objects) for _ in range(300)]
    points = np.concatenate(plans)
    assert (points >= push_sim.REACH_MIN).all()
    assert (points <= push_sim.REACH_MAX).all()
    pushes = [plan for plan in plans if len(plan) == 3]
    assert 0.6 < len(pushes) / len(plans) < 0.8


def test_pushes_go_through_the_middle_of_an_object_within_reach():
    rng = np.random.default_rng(1)
    objects = rng.uniform(-0.01, 0.01, (5, 2))
    pushes = [plan for plan in (make_plan(rng, objects) for _ in range(100)) if len(plan) == 3]
    for _above, start, end in pushes:
        assert start[2] == end[2] == push_sim.LOW
        assert _distance_to_path(objects, start[:2], end[:2]) < 1e-9


def _distance_to_path(objects: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    share = np.clip((objects - start) @ (end - start) / max(((end - start) ** 2).sum(), 1e-12), 0, 1)
    return float(np.linalg.norm(start + share[:, None] * (end - start) - objects, axis=1).min())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train_trajectories": 0}, "data.train_trajectories"),
        ({"trajectory_frames": 1}, "data.trajectory_frames"),
        ({"simulation_seed": -1}, "data.simulation_seed"),
        ({"processes": -1}, "data.processes"),
    ],
)
def test_bad_numbers_name_the_key(tmp_path, changes, key):
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


# --------------------------------------------------------------------------------------------- with OpenGL


@sim
def test_pool_is_the_same_every_time_and_no_two_objects_look_alike(simulator):
    mujoco = simulator._mujoco
    first, second = make_model(mujoco), make_model(mujoco)
    np.testing.assert_array_equal(first.tex_data, second.tex_data)
    np.testing.assert_array_equal(first.geom_size, second.geom_size)
    looks = set()
    for index in range(POOL_SIZE):
        geoms = np.flatnonzero(first.geom_bodyid == first.body(f"object{index}").id)
        textures = first.mat_texid[first.geom_matid[geoms], mujoco.mjtTextureRole.mjTEXROLE_RGB]
        pixels = [first.tex_data[first.tex_adr[t] :][: 64 * 64 * 3].tobytes() for t in textures]
        looks.add((first.geom_type[geoms].tobytes(), *pixels))
    assert len(looks) == POOL_SIZE


@sim
def test_a_trajectory_is_a_function_of_its_key(simulator, trajectories):
    # After all the others, and in a process that has simulated other things.
    again = simulator.trajectory((0, 2, 0), 30)
    for name, array in trajectories[0].items():
        np.testing.assert_array_equal(again[name], array)
    assert not np.array_equal(trajectories[0]["video"], trajectories[1]["video"])


@sim
def test_number_of_processes_changes_nothing():
    one, two = (list(simulate_split("val", 3, 5, 3, processes)) for processes in (1, 2))
    for first, second in zip(one, two, strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


@sim
def test_splits_and_seeds_share_no_trajectory():
    starts = [next(simulate_split(split, seed, 1, 2, 1)) for split in ("train", "val", "test") for seed in (0, 1)]
    assert len({one["endeffector_pos"].tobytes() for one in starts}) == 6


@sim
def test_arrays_have_the_layout_of_bair(trajectories):
    for one in trajectories:
        assert one["video"].shape == (30, 64, 64, 3)
        assert one["video"].dtype == np.uint8
        assert one["action"].shape == (30, 4)
        assert one["endeffector_pos"].shape == (30, 3)
        assert (one["action"][:, 3] >= 0).all()
        assert (one["action"][:, 3] <= 1).all()


@sim
def test_hand_follows_the_actions(trajectories):
    for one in trajectories:
        moved = np.diff(one["endeffector_pos"], axis=0)
        # The weld is soft: the hand lags some millimetres behind its target, but it does not lose it.
        lag = one["endeffector_pos"][-1] - one["endeffector_pos"][0] - one["action"][:-1, :3].sum(axis=0)
        assert np.abs(lag).max() < 0.02
        assert np.corrcoef(moved.ravel(), one["action"][:-1, :3].ravel())[0, 1] > 0.7


@sim
def test_objects_are_pushed_and_stay_in_the_tray(simulator):
    model, data = simulator._model, simulator._data
    moved = []
    for index in range(8):
        # One frame is rendered before the first action, so this is the start of the same trajectory.
        simulator.trajectory((5, 0, index), 1)
        start = data.xpos.copy()
        simulator.trajectory((5, 0, index), 30)
        bodies = [b for b in simulator._bodies if model.body_gravcomp[b] == 0]
        assert 5 <= len(bodies) <= 15
        assert (np.abs(data.xpos[bodies, :2]) < TRAY_HALF + 0.02).all()
        assert (data.xpos[bodies, 2] > 0).all()
        moved.append(int((np.linalg.norm(data.xpos - start, axis=1)[bodies] > 0.01).sum()))
    assert sum(count > 0 for count in moved) >= 6
    assert not any(warning.number for warning in data.warning)


@sim
def test_fingers_touch_objects_and_the_arm_hides_some(simulator, monkeypatch):
    mujoco, model, data = simulator._mujoco, simulator._model, simulator._data
    fingers = np.flatnonzero(model.geom_contype == 2)
    camera = mujoco.Renderer(model, 64, 64)
    camera.enable_segmentation_rendering()
    touching, visible = [], []
    advance = simulator._advance

    def watch(step, opening):
        advance(step, opening)
        bodies = {int(model.geom_bodyid[g]) for pair in data.contact.geom if np.isin(pair, fingers).any() for g in pair}
        touching.append(bool(bodies & set(simulator._bodies)))
        camera.update_scene(data, "front")
        visible.append(int(np.isin(model.geom_bodyid[camera.render()[..., 0]], simulator._bodies).sum()))

    monkeypatch.setattr(simulator, "_advance", watch)
    for index in range(6):
        simulator.trajectory((6, 0, index), 30)
    camera.close()
    assert np.mean(touching) > 0.05
    hidden = [1 - min(visible[i : i + 30]) / max(visible[i : i + 30]) for i in range(0, 180, 30)]
    assert np.median(hidden) > 0.1


@sim
def test_light_drifts(trajectories):
    # The corner of the backdrop is never covered.
    corner = np.stack([one["video"][:, :3, :3].mean(axis=(1, 2, 3)) for one in trajectories])
    assert np.ptp(corner.mean(axis=1)) > 1
    assert np.ptp(corner, axis=1).max() > 0.5


@sim
def test_as_hard_as_real_clips(trajectories):
    """Bicubic 4x and 8x give 17.6 and 15.2 dB on real BAIR clips."""
    x = to_video(torch.from_numpy(np.stack([one["video"][:10] for one in trajectories])))
    for factor, limit in ((4, 20.5), (8, 18.0)):
        degradation = Downsample(factor=factor, kernel="bicubic")
        y = degradation.operator([0.0] * len(x), 64, 64)(x)
        assert 14 < psnr(upsample_bicubic(y, degradation), x).mean() < limit


@sim
def test_gripper_opens(simulator):
    simulator.trajectory((7, 0, 0), 1)
    for opening in (0.0, 1.0):
        for _ in range(10):
            simulator._advance(np.zeros(3), opening)
        finger = float(simulator._data.joint("left_finger").qpos[0])
        assert abs(finger - 0.03 * opening) < 0.005


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
    with pytest.raises(UserError, match=r"GB are needed.*data.dir"):
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
    import mujoco

    def fail(*args):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")  # PyOpenGL without a library

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(UserError, match=r"glGetError.*apt-get install libosmesa6"):
        tiny_module(tmp_path).fetch()
    assert not list(tmp_path.iterdir())


@sim
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "vsr_lightning", "data", "experiments/push_sim/data.yaml", f"data.dir={tmp_path}"]
    parent = subprocess.Popen([*command, "data.processes=1"], stderr=subprocess.DEVNULL)
    while not (workers := children(parent.pid)):
        time.sleep(0.1)
    time.sleep(2)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    assert not list(tmp_path.glob("*.h5"))


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@sim
def test_a_dead_worker_is_one_line(monkeypatch):
    monkeypatch.setattr(push_sim, "_start_worker", end_at_once)
    with pytest.raises(UserError, match=r"data.processes"):
        list(simulate_split("val", 0, 2, 2, 1))


def end_at_once() -> None:
    os._exit(1)
