"""Where data lies, and how it gets there: the folders that are searched, room on the disk, downloads."""

import contextlib
import http.client
import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsr_lightning.errors import UserError
from vsr_lightning.files import put_in_place, remove_abandoned, size_in_words, temporary_path


def read_dirs(dir: str = "") -> list[Path]:
    """Folders in which to look for data, first match wins: `dir`, $VSR_DATA_DIR, data/."""
    return [Path(folder) for folder in (dir, os.environ.get("VSR_DATA_DIR", ""), "data") if folder]


def write_dir(dir: str = "") -> Path:
    """The folder to write data to: `dir`, else data/. $VSR_DATA_DIR is only ever read."""
    return Path(dir or "data")


def find_file(name: str, dir: str = "") -> Path | None:
    """The first file called `name` (a relative path) in `read_dirs(dir)`, or None."""
    return next((folder / name for folder in read_dirs(dir) if (folder / name).is_file()), None)


def check_space(folder: Path, num_bytes: float) -> None:
    """Raise UserError unless the disk of a folder, which need not exist, has room."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"{folder}: {size_in_words(num_bytes)} are needed, {size_in_words(free)} are free; make room, or name a "
            "folder on another disk as data.dir"
        )


def download(url: str, path: Path, url_infos: Mapping[str, Any], *, seconds: float = 10, first_bytes: int = 1) -> None:
    """Download `url` to `path` through TFDS, which verifies it against its checksum in `url_infos`.

    Gives up, with a UserError, unless the `first_bytes` arrive within `seconds`. `path` appears only when complete;
    an interrupted download starts again.
    """
    # TFDS itself retries for minutes where there is no network, in threads that nothing can stop.
    if not _arrives(url, first_bytes, seconds):
        raise UserError(f"{url}: out of reach, or too slow")

    from tensorflow_datasets.core.download import DownloadManager
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    folder = temporary_path(path)
    try:
        remove_abandoned(path)
        shutil.rmtree(folder, ignore_errors=True)  # abandoned by an earlier process that had this one's number
        folder.mkdir(parents=True)
        manager = DownloadManager(download_dir=folder, url_infos=dict(url_infos), force_checksums_validation=True)
        put_in_place(Path(manager.download(url)), path)
    except NonMatchingChecksumError as error:
        raise UserError(f"{url}: what arrived has another checksum than TFDS knows; nothing of it is kept") from error
    except Exception as error:  # whatever requests, urllib3, or the file system raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{url}: download to {path} failed: {reason}") from error
    except KeyboardInterrupt:
        # Python waits for threads before it exits, and nothing stops TFDS's.
        print("the download ends with the next Ctrl-C", file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _arrives(url: str, num_bytes: int, seconds: float) -> bool:
    """Whether the first `num_bytes` of `url` can be had within `seconds`."""
    arrived = threading.Event()

    def read() -> None:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(url, timeout=seconds) as response,
        ):
            if len(response.read(num_bytes)) == num_bytes:
                arrived.set()

    # A thread, because the time-out of urlopen covers neither the name look-up nor a slow trickle.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(seconds)
    return arrived.is_set()
