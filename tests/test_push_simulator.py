"""One simulated trajectory: its plan, its physics, its look. Tests marked `sim` need MuJoCo and an OpenGL library."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vsr_lightning.data import push_simulator
from vsr_lightning.data.clips import to_video
from vsr_lightning.data.push_scene import TRAY_HALF
from vsr_lightning.data.push_simulator import PushSimulator, make_plan
from vsr_lightning.degradation.downsample import Downsample, upsample_bicubic
from vsr_lightning.metrics import psnr

sim = pytest.mark.sim


@pytest.fixture(scope="module")
def simulator() -> Iterator[PushSimulator]:
    simulator = PushSimulator()
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def trajectories(simulator: PushSimulator) -> list[dict[str, np.ndarray]]:
    return [simulator.trajectory((0, 2, index), 30) for index in range(8)]


# -- without OpenGL


def test_plans_seek_objects_and_stay_within_reach():
    rng = np.random.default_rng(0)
    objects = rng.uniform(-TRAY_HALF, TRAY_HALF, (6, 2))
    plans = [make_plan(rng, objects) for _ in range(300)]
    points = np.concatenate(plans)
    assert (points >= push_simulator.REACH_MIN).all()
    assert (points <= push_simulator.REACH_MAX).all()
    pushes = [plan for plan in plans if len(plan) == 3]
    assert 0.6 < len(pushes) / len(plans) < 0.8


def test_pushes_go_through_the_middle_of_an_object_within_reach():
    rng = np.random.default_rng(1)
    objects = rng.uniform(-0.01, 0.01, (5, 2))
    pushes = [plan for plan in (make_plan(rng, objects) for _ in range(100)) if len(plan) == 3]
    for _above, start, end in pushes:
        assert start[2] == end[2] == push_simulator.LOW
        assert _distance_to_path(objects, start[:2], end[:2]) < 1e-9


def _distance_to_path(objects: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    share = np.clip((objects - start) @ (end - start) / max(((end - start) ** 2).sum(), 1e-12), 0, 1)
    return float(np.linalg.norm(start + share[:, None] * (end - start) - objects, axis=1).min())


# -- with OpenGL


@sim
def test_a_trajectory_is_a_function_of_its_key(simulator, trajectories):
    # After all the others, and in a process that has simulated other things.
    again = simulator.trajectory((0, 2, 0), 30)
    for name, array in trajectories[0].items():
        np.testing.assert_array_equal(again[name], array)
    assert not np.array_equal(trajectories[0]["video"], trajectories[1]["video"])


@sim
def test_a_script_need_not_close_it():
    script = "import vsr_lightning.data.push_simulator as p; s = p.PushSimulator(); print(len(s.trajectory((0,), 1)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


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
