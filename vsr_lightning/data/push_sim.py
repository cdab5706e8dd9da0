"""Simulated robot pushing, the stand-in for BAIR where its archive cannot be had: a MuJoCo arm pushes things in a tray.

F frames, H W pixels. Lengths in metres, times in seconds.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vsr_lightning.config import UserError
from vsr_lightning.data.clip_store import ClipStore, write_store
from vsr_lightning.data.fetching import check_space, write_dir
from vsr_lightning.data.push_scene import POOL_SIZE, TRAY_HALF, make_model, object_name
from vsr_lightning.data.trajectories import TrajectoryDataModule
from vsr_lightning.files import remove_abandoned

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

SPLITS = ("train", "val", "test")
GL_BACKENDS = ("egl", "osmesa", "glfw")

Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------------------------------------------------
# One trajectory


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
    """Simulates and renders trajectories, each a function of its key alone.

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
        self._renderer.close()

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


# ---------------------------------------------------------------------------------------------------------
# Many trajectories

_simulator: PushSimulator | None = None  # of a worker process


def _start_worker() -> None:
    global _simulator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _simulator = PushSimulator()


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _simulate(key: tuple[int, ...], num_frames: int) -> Arrays:
    assert _simulator is not None
    return _simulator.trajectory(key, num_frames)


def simulate_split(split: str, seed: int, count: int, num_frames: int, processes: int) -> Iterator[Arrays]:
    """Trajectories 0 … count-1 of a split, in order, whatever the number of processes; arrays as `trajectory` has them.

    No two splits share a trajectory: each draws from random streams of its own.
    """
    keys = [(seed, SPLITS.index(split), index) for index in range(count)]
    # Spawned, not forked: an OpenGL context survives no fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_simulate, keys, [num_frames] * count, chunksize=4)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that simulates has died, of too little memory perhaps; fewer of them: data.processes=1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # when interrupted: do not simulate the rest first


class PushSim(TrajectoryDataModule):
    """Clips of simulated robot pushing; `make data-sim` simulates them.

    Args:
        train_trajectories, val_trajectories, test_trajectories: how many to simulate.
        trajectory_frames: frames of each.
        simulation_seed: of all of them; `seed` is that of the training order.
        processes: that simulate, one core each; 0 is one for each core of the machine.
        **common: the keys of `TrajectoryDataModule`.
    """

    store_name = "push_sim"
    ways_out = "simulate it: make data-sim"

    def __init__(
        self,
        *,
        train_trajectories: int = 20_000,
        val_trajectories: int = 128,
        test_trajectories: int = 128,
        trajectory_frames: int = 30,
        simulation_seed: int = 0,
        processes: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.trajectories = {"train": train_trajectories, "val": val_trajectories, "test": test_trajectories}
        for split, count in self.trajectories.items():
            if count < 1:
                raise UserError(f"data.{split}_trajectories: must be at least 1, not {count}")
        if trajectory_frames < self.num_frames:
            raise UserError(f"data.trajectory_frames: {trajectory_frames} is less than data.num_frames")
        for key, value in {"simulation_seed": simulation_seed, "processes": processes}.items():
            if value < 0:
                raise UserError(f"data.{key}: must not be negative, not {value}")
        self.trajectory_frames = trajectory_frames
        self.simulation_seed = simulation_seed
        if self.source:
            raise UserError("data.source: simulated clips have none; leave it out")
        self.processes = processes or _available_cores()

    def fetch(self) -> None:
        """Simulate the splits whose stores are not there."""
        simulator = PushSimulator()  # that it cannot run here is told now, and in one line
        simulator.close()
        missing = sum(count for split, count in self.trajectories.items() if self._here(split) is None)
        for split in self.trajectories:
            remove_abandoned(write_dir(self.dir) / self.store_file(split))  # before free space is looked at
        check_space(write_dir(self.dir), missing * self.trajectory_frames * FRAME_SIZE**2 * 3)
        for split in self.trajectories:
            self._make_store(split, simulator)

    def open_store(self, path: Path) -> ClipStore:
        """A store, or a UserError where it was simulated with other settings."""
        store = super().open_store(path)
        wanted = self._origin(path.stem.removeprefix(f"{self.store_name}-"))
        if store.attributes["source"] != wanted:
            raise UserError(
                f"{path}: is {store.attributes['source']}, not {wanted}; set the keys of data so, delete it, or have "
                "another store made with data.dir=…"
            )
        return store

    def _origin(self, split: str) -> str:
        """What a store says of itself."""
        return (
            f"simulated, seed {self.simulation_seed}, {self.trajectories[split]} trajectories of "
            f"{self.trajectory_frames} frames"
        )

    def _here(self, split: str) -> Path | None:
        """The store that `fetch` need not make. With `data.dir` only one there counts: others may differ."""
        path = self.find_store(split)
        return path if path and (not self.dir or path.parent == Path(self.dir)) else None

    def _make_store(self, split: str, simulator: PushSimulator) -> None:
        if path := self._here(split):
            self.open_store(path).verify()
            print(f"{path} is there and verified")
            return
        path, count = write_dir(self.dir) / self.store_file(split), self.trajectories[split]
        trajectories = simulate_split(split, self.simulation_seed, count, self.trajectory_frames, self.processes)
        chunks = ({key: array[None] for key, array in one.items()} for one in trajectories)
        write_store(
            path,
            tqdm(chunks, total=count, desc=path.name, unit=" trajectories"),
            name=path.stem,
            source=self._origin(split),
            camera="front",
            frames_per_second=simulator.frames_per_second,
            created_by=f"vsr_lightning, {simulator.renderer}",
        )
        picture = path.with_suffix(".png")
        draw_samples(ClipStore(path), picture)
        print(f"{path}: {count:,} trajectories of {self.trajectory_frames} frames; a look at them: {picture}")


def _available_cores() -> int:
    """Of this process, which a container or scheduler may hold to fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw_samples(store: ClipStore, path: Path, rows: int = 6, columns: int = 10, zoom: int = 2) -> None:
    """A picture of the first trajectories of a store, one a row, at frames spread over each."""
    frames = np.linspace(0, store.shape[1] - 1, min(columns, store.shape[1])).round().astype(int)
    pictures = [np.concatenate(list(store[index].numpy()[frames]), axis=1) for index in range(min(rows, len(store)))]
    sheet = Image.fromarray(np.concatenate(pictures))
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)
