"""One trajectory of simulated robot pushing: a MuJoCo arm pushes things in a tray, and a camera looks on.

F frames, H W pixels. Lengths in metres, times in seconds.
"""

import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from vsr_lightning.data.push_scene import POOL_SIZE, TRAY_HALF, make_model, object_name
from vsr_lightning.errors import UserError

VERSION = 1  # of trajectories: raise it with an edit, here or in push_scene.*, that changes what comes of a key
FRAME_SIZE = 64
SUPERSAMPLING = 2  # frames are rendered so many times larger and averaged: a camera's pixel has an area
SUBSTEPS = 12  # physics steps a frame
SETTLE_STEPS = 125  # for the objects to come to rest before the first frame

OBJECTS = (5, 15)  # in the tray at a time, as few and as many
GRID = 4  # objects are dropped over different cells of a 4 x 4 grid, or they would start inside each other
LOW, HIGH = 0.012, 0.12  # height of the fingertips when pushing, and when travelling above the objects
# Where the hand may go. Nearer to the camera (-y) the arm would hide half of the tray.
REACH_MIN, REACH_MAX = np.array([-0.18, -0.13, LOW]), np.array([0.18, 0.17, HIGH])
MAX_STEP = 0.04  # of the hand, per frame
JITTER = 0.003  # standard deviation of the noise on its steps
SEEK_SHARE = 0.7  # of the hand's plans that push an object; the others wander

GL_BACKENDS = ("egl", "osmesa", "glfw")

Arrays = dict[str, np.ndarray]


def make_plan(rng: np.random.Generator, objects: np.ndarray) -> list[np.ndarray]:
    """Waypoints (3,) of the hand: through one of the objects (N, 2) in a random direction, or just anywhere."""
    if rng.random() < SEEK_SHARE:
        target = objects[rng.integers(len(objects))]
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        start, end = target - 0.08 * direction, target + 0.12 * direction
        points = [np.array([*start, HIGH]), np.array([*start, LOW]), np.array([*end, LOW])]
    else:
        points = [rng.uniform(REACH_MIN, REACH_MAX) for _ in range(2)]
    return [np.clip(point, REACH_MIN, REACH_MAX) for point in points]


class PushSimulator:
    """Simulates and renders trajectories, each a function of its key alone. Closes itself at exit, if not before.

    The physics is deterministic for one version of MuJoCo; the pixels also depend on the renderer, see `renderer`.

    Raises:
        UserError: if MuJoCo or the OpenGL libraries that it renders with are missing.
    """

    def __init__(self) -> None:
        mujoco = _import_mujoco()
        self._mujoco = mujoco
        self._model = make_model(mujoco)
        self._data = mujoco.MjData(self._model)
        size = FRAME_SIZE * SUPERSAMPLING
        try:
            self._renderer = mujoco.Renderer(self._model, size, size)
        except Exception as error:  # MuJoCo and PyOpenGL raise whatever the missing library makes them raise
            raise UserError(_gl_message(error)) from error
        # MuJoCo would do it by itself, but so late that Python's modules are gone: a traceback at exit.
        self._close = weakref.finalize(self, self._renderer.close)
        self._bodies = [self._model.body(object_name(i)).id for i in range(POOL_SIZE)]
        self._joints = [self._model.joint(f"{object_name(i)}_joint").qposadr[0] for i in range(POOL_SIZE)]

    @property
    def frames_per_second(self) -> float:
        return 1 / (SUBSTEPS * self._model.opt.timestep)

    @property
    def renderer(self) -> str:
        """MuJoCo's version and the OpenGL backend, as "mujoco 4.0.0, osmesa"."""
        return f"mujoco {self._mujoco.__version__}, {os.environ['MUJOCO_GL']}"

    def close(self) -> None:
        self._close()

    def trajectory(self, key: tuple[int, ...], num_frames: int) -> Arrays:
        """What a store keeps of the trajectory that `key` names.

        Returns:
            video: uint8 (F, H, W, 3).
            action: float32 (F, 4), what is done after each frame: displacement of the hand (3, metres) and
                opening of the gripper (0 to 1).
            endeffector_pos: float32 (F, 3), of the fingertips, metres.
        """
        rng = np.random.default_rng(key)
        chosen = self._reset(rng)
        brightness = _light(rng, num_frames)
        frames, actions, positions = [], [], []
        plan: list[np.ndarray] = []
        opening = 1.0
        for frame in range(num_frames):
            frames.append(self._render(brightness[frame]))
            positions.append(self._data.body("hand").xpos.copy())
            if not plan:
                plan = make_plan(rng, self._data.xpos[[self._bodies[i] for i in chosen], :2])
                opening = rng.uniform()
            hand = self._data.mocap_pos[0]
            way = plan[0] - hand
            distance = float(np.linalg.norm(way))
            step = way * min(1.0, MAX_STEP / max(distance, 1e-9)) + rng.normal(0, JITTER, 3)
            if distance <= MAX_STEP:
                plan.pop(0)
            step = np.clip(hand + step, REACH_MIN, REACH_MAX) - hand
            actions.append([*step, opening])
            self._advance(step, opening)
        return {
            "video": np.stack(frames),
            "action": np.array(actions, np.float32),
            "endeffector_pos": np.array(positions, np.float32),
        }

    def _reset(self, rng: np.random.Generator) -> np.ndarray:
        """Drop some objects of the pool into the tray and let them come to rest; returns their numbers."""
        mujoco, model, data = self._mujoco, self._model, self._data
        mujoco.mj_resetData(model, data)
        count = rng.integers(OBJECTS[0], OBJECTS[1] + 1)
        chosen = rng.choice(POOL_SIZE, count, replace=False)
        cells = rng.choice(GRID**2, count, replace=False)
        width = 2 * TRAY_HALF / GRID
        centres = (np.stack(np.divmod(cells, GRID), axis=-1) + 0.5) * width - TRAY_HALF
        for i in range(POOL_SIZE):
            self._set_present(i, i in chosen)
        for i, centre in zip(chosen, centres, strict=True):
            pose = data.qpos[self._joints[i] : self._joints[i] + 7]
            pose[:2] = centre + rng.uniform(-0.15, 0.15, 2) * width
            pose[2] = rng.uniform(0.04, 0.08)
            pose[3:] = _unit(rng.normal(size=4))  # a rotation, uniformly
        data.mocap_pos[0] = *rng.uniform(REACH_MIN, REACH_MAX)[:2], HIGH
        mujoco.mj_step(model, data, SETTLE_STEPS)
        return chosen

    def _set_present(self, index: int, present: bool) -> None:
        """An absent object stays parked below the floor, weightless and touching nothing."""
        body = self._model.body(self._bodies[index])
        geoms = slice(body.geomadr[0], body.geomadr[0] + body.geomnum[0])
        self._model.geom_contype[geoms] = self._model.geom_conaffinity[geoms] = int(present)
        self._model.body_gravcomp[self._bodies[index]] = float(not present)

    def _advance(self, step: np.ndarray, opening: float) -> None:
        """Move the hand's target by `step` in the time of one frame; the arm follows, and meets what is in its way."""
        self._data.ctrl[:] = opening * self._model.actuator_ctrlrange[:, 1]
        for _ in range(SUBSTEPS):
            self._data.mocap_pos[0] += step / SUBSTEPS
            self._mujoco.mj_step(self._model, self._data)

    def _render(self, brightness: np.ndarray) -> np.ndarray:
        """The camera's picture, uint8 (H, W, 3), with the lamp at `brightness` (3,)."""
        self._model.light("lamp").diffuse = brightness
        self._renderer.update_scene(self._data, "front")
        return _average_blocks(self._renderer.render(), SUPERSAMPLING)


def _average_blocks(picture: np.ndarray, size: int) -> np.ndarray:
    """Mean of each block of size x size pixels, rounded: uint8 (H, W, C) -> (H / size, W / size, C)."""
    # A sum of slices: much faster than a mean over the axes of a reshaped picture.
    total = np.zeros((picture.shape[0] // size, picture.shape[1] // size, picture.shape[2]), np.uint16)
    for row in range(size):
        for column in range(size):
            total += picture[row::size, column::size]
    return ((total + size**2 // 2) // size**2).astype(np.uint8)


def _light(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Brightness of the lamp (F, 3): a level and a tint of the day, and a slow drift."""
    level = rng.uniform(0.6, 0.8) * (1 + rng.uniform(-0.03, 0.03, 3))
    phase = 2 * np.pi * (rng.uniform() + rng.uniform(0.2, 1) * np.arange(num_frames) / num_frames)
    return level * (1 + 0.04 * np.sin(phase))[:, None]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _import_mujoco() -> Any:
    """MuJoCo, with its OpenGL backend chosen where $MUJOCO_GL leaves that open. Raises UserError."""
    if sys.platform == "linux":  # elsewhere MuJoCo's own choice can render without a window
        backend = os.environ.get("MUJOCO_GL") or ("egl" if Path("/dev/nvidiactl").exists() else "osmesa")
        if backend not in GL_BACKENDS:
            raise UserError(f"MUJOCO_GL={backend}: is none of {', '.join(GL_BACKENDS)}")
        os.environ["MUJOCO_GL"] = backend
    try:
        import mujoco
    except ModuleNotFoundError as error:
        if error.name == "mujoco":
            raise UserError("MuJoCo is missing: .venv/bin/pip install -c constraints.txt -e '.[sim]'") from None
        raise UserError(_gl_message(error)) from error
    except Exception as error:  # PyOpenGL raises whatever the missing library makes it raise
        raise UserError(_gl_message(error)) from error
    return mujoco


def _gl_message(error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"MuJoCo cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({reason}): install the OpenGL "
        "libraries, on Debian and Ubuntu: apt-get install libosmesa6 libegl1 libgl1"
    )
