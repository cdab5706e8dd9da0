"""Simulated robot pushing as a dataset, the stand-in for BAIR where its archive cannot be had."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vsr_lightning.data import push_simulator
from vsr_lightning.data.clip_store import ClipStore, write_store
from vsr_lightning.data.fetching import check_space, write_dir
from vsr_lightning.data.push_simulator import FRAME_SIZE, PushSimulator
from vsr_lightning.data.push_workers import simulate_split
from vsr_lightning.data.trajectories import TrajectoryDataModule
from vsr_lightning.errors import UserError
from vsr_lightning.files import remove_abandoned, replacing

CAMERA = "front"  # the only one that is rendered


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
    ways_out = "simulate it: make data-sim, or the `data` command with this experiment"

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
        if self.camera not in ("", CAMERA):
            raise UserError(f"data.camera: simulated clips are of '{CAMERA}', not '{self.camera}'; leave it out")
        if self.source:
            raise UserError("data.source: simulated clips have none; leave it out")
        self.processes = processes or _available_cores()

    def fetch(self) -> None:
        """Verify the stores that are there, then simulate the other splits; draw the pictures that are missing."""
        missing = []
        for split in self.trajectories:
            if path := self.store_here(split):
                self.open_store(path).verify()
                print(f"{path} is there and verified")
                self._draw_missing(path)
            else:
                missing.append(split)
        if missing:
            self._simulate(missing)

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
        """What a store says of itself. Version 1, that of the first stores, goes without saying."""
        version = f"version {push_simulator.VERSION}, " if push_simulator.VERSION > 1 else ""
        return (
            f"simulated, {version}seed {self.simulation_seed}, {self.trajectories[split]} trajectories of "
            f"{self.trajectory_frames} frames"
        )

    def _simulate(self, splits: Sequence[str]) -> None:
        simulator = PushSimulator()  # that it cannot run here is told now, and in one line
        simulator.close()
        for split in splits:
            remove_abandoned(write_dir(self.dir) / self.store_file(split))  # before free space is looked at
        count = sum(self.trajectories[split] for split in splits)
        check_space(write_dir(self.dir), count * self.trajectory_frames * FRAME_SIZE**2 * 3)
        for split in splits:
            self._make_store(split, simulator)

    def _make_store(self, split: str, simulator: PushSimulator) -> None:
        path, count = write_dir(self.dir) / self.store_file(split), self.trajectories[split]
        trajectories = simulate_split(split, self.simulation_seed, count, self.trajectory_frames, self.processes)
        path.with_suffix(".png").unlink(missing_ok=True)  # of an earlier store
        chunks = ({key: array[None] for key, array in one.items()} for one in trajectories)
        write_store(
            path,
            tqdm(chunks, total=count, desc=path.name, unit=" trajectories"),
            name=path.stem,
            source=self._origin(split),
            camera=CAMERA,
            frames_per_second=simulator.frames_per_second,
            created_by=f"vsr_lightning, {simulator.renderer}",
        )
        print(f"{path}: {count:,} trajectories of {self.trajectory_frames} frames")
        self._draw_missing(path)

    def _draw_missing(self, path: Path) -> None:
        """Draw the picture beside a store, unless it is there or its folder is only read, as $VSR_DATA_DIR is."""
        picture = path.with_suffix(".png")
        is_ours = path.parent == write_dir(self.dir) and os.access(path.parent, os.W_OK)
        if is_ours and not picture.exists():
            draw_samples(self.open_store(path), picture)
            print(f"{picture}: a look at the first of them")


def _available_cores() -> int:
    """The cores of this process, which a container or scheduler may hold to fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw_samples(store: ClipStore, path: Path, rows: int = 6, columns: int = 10, zoom: int = 2) -> None:
    """A picture of the first trajectories of a store, one a row, at frames spread over each."""
    frames = np.linspace(0, store.shape[1] - 1, min(columns, store.shape[1])).round().astype(int)
    pictures = [np.concatenate(list(store[index].numpy()[frames]), axis=1) for index in range(min(rows, len(store)))]
    sheet = Image.fromarray(np.concatenate(pictures))
    with replacing(path) as temporary:
        sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(temporary, "PNG")
