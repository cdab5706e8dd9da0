"""BAIR robot pushing, the small version (Ebert et al., 2017, arXiv:1710.05268): a robot arm pushes objects in a bin.

43,264 training and 256 test trajectories of 30 frames, 64 x 64, from two cameras.
"""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsr_lightning.data.bair_archive import (
    ARCHIVE,
    CAMERAS,
    EXPECTED,
    FOLDER,
    NUM_FRAMES,
    Record,
    find_records,
    num_bytes,
    parse_trajectory,
    read_archive,
)
from vsr_lightning.data.clip_store import ClipStore, StoreWriter
from vsr_lightning.data.fetching import check_space, download, find_file, read_dirs, write_dir
from vsr_lightning.data.splits import SPLITS
from vsr_lightning.data.tfrecord import OVERHEAD
from vsr_lightning.data.trajectories import TrajectoryDataModule
from vsr_lightning.errors import UserError
from vsr_lightning.files import remove_abandoned

STORED_SHARE = 0.5  # of the archive's bytes that the stores take: one camera of two (369,480 of 741,610 a trajectory)
VAL_EVERY = ", validation every "  # stands between the source and `val_every` in a store's attribute `source`


def split_of(record: Record, val_every: int) -> str:
    """The split of a trajectory. Validation is the last of every `val_every` in a file of the train folder.

    So the split does not depend on the order of the files, nor on which of them are there.
    """
    is_val = record.folder == "train" and record.number % val_every == val_every - 1
    return "val" if is_val else record.folder


def _source_name(source: Path) -> str:
    """What stores keep of `data.source`, which may be gone by now: the name of the tar, or of the folder of records."""
    return FOLDER if (source / FOLDER).is_dir() else source.name


def convert(source: Path, folder: Path, camera: str, val_every: int) -> dict[str, int]:
    """Make a store of each split that has trajectories, in one pass; returns their numbers.

    All stores appear in the end, that of training last: where it is, the others are.
    """
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                StoreWriter(
                    folder / f"bair-{split}.h5",
                    name=f"bair-{split}",
                    source=f"{source.name}{VAL_EVERY}{val_every}",
                    camera=camera,
                )
            )
            for split in SPLITS
        }
        bar = stack.enter_context(tqdm(total=num_bytes(source), desc=source.name, unit="B", unit_scale=True))
        for record in read_archive(source):
            writers[split_of(record, val_every)].append(parse_trajectory(record, camera))
            bar.update(len(record.data) + OVERHEAD)
        if not any(writer.num_clips for writer in writers.values()):
            raise UserError(f"{source}: holds no {FOLDER}/{{train,test}}/*.tfrecords")
        for split in SPLITS:  # stores of another source must not stand beside these; training goes first
            (folder / f"bair-{split}.h5").unlink(missing_ok=True)
        for split in reversed(SPLITS):
            if writers[split].num_clips:
                writers[split].commit()
    return {split: writer.num_clips for split, writer in writers.items()}


class BAIR(TrajectoryDataModule):
    """Clips of BAIR robot pushing small.

    `source` is the archive, or a folder that is or holds `softmotion30_44k`. Without it, either is looked for where
    data lies, and else the archive is downloaded.

    Args:
        camera: `image_aux1`, the one of the benchmarks, or `image_main`.
        val_every: of every so many trajectories of a training file, the last is validation; 42 makes 1,014 of 43,264.
        **common: the keys of `TrajectoryDataModule`.
    """

    store_name = "bair"
    ways_out = (
        f"make data-bair downloads it, OVERRIDES=data.source=<{ARCHIVE}, or a folder with {FOLDER}> takes what is "
        "there; or simulate a stand-in: make data-sim, then SOURCE=sim"
    )
    left_out = (
        "its source had no trajectories for it: take more of the archive, or for validation clips a lower "
        "data.val_every, and delete the stores, to make them again"
    )

    def __init__(self, *, camera: str = CAMERAS[0], val_every: int = 42, **common: Any) -> None:
        super().__init__(camera=camera, **common)
        if camera not in CAMERAS:
            raise UserError(f"data.camera: '{camera}' is none of {', '.join(CAMERAS)}")
        if val_every < 2:
            raise UserError(f"data.val_every: must be at least 2, not {val_every}")
        self.val_every = val_every

    def clips_name(self, split: str) -> str:
        return " ".join(["bair", *([self.camera] if self.camera != CAMERAS[0] else []), split])

    def fetch(self) -> None:
        """Make the stores unless they are there: from `source`, from what lies in the data folders, or a download."""
        if self.store_here("train"):
            self._verify()
            return
        folder = write_dir(self.dir)
        for file in (ARCHIVE, *map(self.store_file, SPLITS)):
            remove_abandoned(folder / file)  # before free space is looked at
        source = self._find_source()
        self._check_what_is_replaced(folder, source.name if source else ARCHIVE)
        source = source or self._download(folder)
        check_space(folder, STORED_SHARE * num_bytes(source))
        counts = convert(source, folder, self.camera, self.val_every)
        self._report(counts, folder)

    def _verify(self) -> None:
        counts = dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            if path := self.store_here(split):
                store = self.open_store(path)
                store.verify()
                counts[split] = len(store)
                print(f"{path} is there and verified")
            else:
                print(f"{self.store_file(split)} is not there: its source had no trajectories for it")
        _warn_of_missing(counts)

    def open_store(self, path: Path) -> ClipStore:
        """A store, or a UserError where it is not what `camera`, `source` and `val_every` would make."""
        store = super().open_store(path)
        self._check_origin(store, _source_name(Path(self.source)) if self.source else "")
        return store

    def _check_what_is_replaced(self, folder: Path, source_name: str) -> None:
        """Refuse to make stores over those of another source: what an interruption left is of the same."""
        for path in map(folder.joinpath, map(self.store_file, SPLITS)):
            if path.exists():
                self._check_origin(self.open_store(path), source_name)

    def _check_origin(self, store: ClipStore, source_name: str) -> None:
        """Raise UserError unless a store was made with `val_every`, and from this source if one is named."""
        name, _, val_every = store.attributes["source"].partition(VAL_EVERY)
        wanted = source_name or name
        if (name, val_every) != (wanted, str(self.val_every)):
            raise UserError(
                f"{store.path}: made from {store.attributes['source']}, not from {wanted}{VAL_EVERY}{self.val_every}; "
                "leave data.source and data.val_every as they were, or delete the stores and make them again"
            )

    def _find_source(self) -> Path | None:
        """What to convert, or None if it has to be downloaded."""
        if self.source:
            return find_records(Path(self.source))
        folders = (folder / FOLDER for folder in read_dirs(self.dir))
        return next((folder for folder in folders if folder.is_dir()), None) or find_file(ARCHIVE, self.dir)

    def _download(self, folder: Path) -> Path:
        from tensorflow_datasets.datasets.bair_robot_pushing_small import (
            bair_robot_pushing_small_dataset_builder as tfds,
        )

        archive = folder / ARCHIVE
        url_infos = tfds.Builder.url_infos
        check_space(folder, (1 + STORED_SHARE) * url_infos[tfds.DATA_URL].size)
        try:
            download(tfds.DATA_URL, archive, url_infos)
        except UserError as error:
            raise UserError(f"{error}; {self.ways_out}") from error
        print(f"{archive}: downloaded and verified; once the stores are made it can be deleted")
        return archive

    def _report(self, counts: Mapping[str, int], folder: Path) -> None:
        for split, count in counts.items():
            path = folder / self.store_file(split)
            if count:
                print(f"{path}: {count:,} trajectories of {NUM_FRAMES} frames, {self.camera}")
            else:
                hint = f", since no file of train/ has {self.val_every} (data.val_every)" if split == "val" else ""
                print(f"{path}: not written: no trajectories for it{hint}")
        _warn_of_missing(counts)


def _warn_of_missing(counts: Mapping[str, int]) -> None:
    """A part of the data is usable, but that it is a part is said each time."""
    found = {"train": counts["train"] + counts["val"], "test": counts["test"]}
    for key, expected in EXPECTED.items():
        if found[key] != expected:
            print(f"warning: {found[key]:,} trajectories in {key}/, not BAIR's {expected:,}", file=sys.stderr)
