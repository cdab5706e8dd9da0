"""What a run folder holds of a sweep, as far as it can be read. The sweep makes the rest."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vsr_lightning.evaluation import results, videos
from vsr_lightning.evaluation.results import item_key, samples_of, video_key
from vsr_lightning.files import DamagedFile

T = TypeVar("T")


@dataclass(frozen=True)
class Inventory:
    """Items by `results.item_key`, their videos by `results.video_key`."""

    measured: set[tuple]  # items whose row says ok
    restored: set[tuple]  # those of them whose restoration is kept
    samples: dict[tuple, int]  # how many of them are in a video's mean
    clips: set[tuple]  # videos with a clip to look at, of a measured item
    damaged: list[str]  # a line for each file that cannot be read, naming it


def take_inventory(folder: Path) -> Inventory:
    """Look through a run folder, which need not exist. Raises UserError if a row cannot be read."""
    rows = [row for row in results.read_rows(folder) if row["status"] == "ok"]
    measured = {item_key(row) for row in rows}
    damaged: list[str] = []
    batches = _readable(videos.restored_files(folder), videos.read_restored, damaged)
    clips = _readable(videos.clip_files(folder), videos.read_clip_file, damaged)
    means = _readable(folder.glob("means.csv"), results.read_table, damaged)
    return Inventory(
        measured=measured,
        # What has no row was cut off by a kill, and is made again with it (videos.drop_unmeasured).
        restored={key for batch in batches for key in batch} & measured,
        samples={video_key(mean): samples_of(mean) for table in means for mean in table},
        clips={video_key(clip) for kept in clips for clip in kept}
        & {video_key(row) for row in rows if results.normalise(row.get("noise")) == 0},
        damaged=damaged,
    )


def _readable(paths: Iterable[Path], read: Callable[[Path], T], damaged: list[str]) -> Iterator[T]:
    """What `read` makes of each file; of one that it cannot read, a line in `damaged`."""
    for path in paths:
        try:
            yield read(path)
        except DamagedFile as error:
            damaged.append(str(error))
