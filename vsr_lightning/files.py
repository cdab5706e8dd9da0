"""Files that are whole or absent, whatever kills the process or fills the disk; one process writes at a time.

What damages them later, a failing disk or an interrupted copy, is found when they are read.
"""

import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vsr_lightning.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, or more than this user or process may have

HDF5_BEGINS = b"\x89HDF"
SEAL_BEGINS = b"sha256 "
SEAL_SIZE = 512  # the smallest "user block", which HDF5 leaves alone


def size_in_words(num_bytes: float) -> str:
    """As "48.4 GB" or "3.7 MB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


class DamagedFile(UserError):
    """A file does not hold what was written to it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the temporary path to write; afterwards that file, on disk, takes the place of `path`.

    If writing fails, the temporary file goes and an older `path` stays as it was. Raises OSError that names `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(path):
            yield temporary
            put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file. Its bytes are on disk before its name is, or a power cut could leave the name alone."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Where this process keeps what will be `path` when it is complete, be that after hours.

    No two writers of a path share it, so none of them waits for another.
    """
    return path.with_name(f"{_temporary_prefix(path)}{os.getpid()}.part")


def _temporary_prefix(path: Path) -> str:
    # The host's name, because a process number says nothing about the processes of another machine or container.
    return f".{path.name}.{socket.gethostname()}-"


def remove_abandoned(path: Path) -> None:
    """Remove the temporary files and folders for `path` whose processes have died."""
    prefix = _temporary_prefix(path)
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        if not _is_alive(leftover.name.removeprefix(prefix).removesuffix(".part")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)  # signal 0 tests and does nothing
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the file system say which file it is about.

    `write` and `fsync` know no name, and libraries wrap a full disk in errors of their own.
    """
    try:
        yield
    except Exception as error:
        if full := _disk_full(error):
            raise OSError(full, os.strerror(full), str(path)) from error
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _disk_full(error: Exception) -> int:
    """The number in DISK_FULL that an error of Python's, HDF5's or safetensors' is about, else 0."""
    for code in DISK_FULL:
        # HDF5 writes "errno = 28, error message = …", safetensors "… (os error 28)".
        if getattr(error, "errno", None) == code or any(
            mark in str(error) for mark in (f"errno = {code},", f"os error {code})")
        ):
            return code
    return 0


@contextlib.contextmanager
def reading(path: Path, way_out: str) -> Iterator[None]:
    """Raise DamagedFile, which names the file, the reason and a way out, whatever a library says of a damaged file.

    zipfile, zlib, HDF5, Pillow and csv each have errors of their own, and use Python's. What says nothing of the
    content stays what it is: an error of the file system, with the file's name, or a lack of memory.
    """
    try:
        with naming(path):
            yield
    except (DamagedFile, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise DamagedFile(f"{path}: cannot be read ({error.__class__.__name__}); {way_out}") from error


def seal(content: bytes) -> bytes:
    """An HDF5 file with its own SHA-256 in the block before it, if it was made with SEAL_SIZE bytes for that."""
    return content if content.startswith(HDF5_BEGINS) else _seal(content).ljust(SEAL_SIZE, b"\0") + content[SEAL_SIZE:]


def check_seal(path: Path) -> bool:
    """Whether an HDF5 file has a seal, as all but older ones do. Raises ValueError if it is not what was sealed.

    HDF5 itself has checksums of arrays alone: of other damage it shows wrong names or black pictures, or never returns.
    """
    content = path.read_bytes()
    if not content.startswith(SEAL_BEGINS):
        return False
    if not content.startswith(_seal(content)):
        raise ValueError("the content has changed since it was written")
    return True


def _seal(content: bytes) -> bytes:
    return SEAL_BEGINS + hashlib.sha256(memoryview(content)[SEAL_SIZE:]).hexdigest().encode()


def read_table(path: Path, way_out: str) -> list[dict[str, str]]:
    """Rows of a CSV file, cells as text. Raises DamagedFile."""
    with reading(path, way_out):
        text = path.read_bytes().decode()
        if not text.endswith("\n") or "\0" in text:  # cut off, or blocks that were never written
            raise ValueError("not a whole table")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has more or fewer cells than the header")
    return rows


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file; what a row lacks, or holds as None, is an empty cell."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def lock(file: IO, waiting_for: Path) -> None:
    """Wait until no other process holds this file; it is let go when it is closed, or its process ends.

    `waiting_for` is the folder that a notice on stderr names. Where the file system has no locks, does nothing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{waiting_for}: another process is at work here; waiting for its end", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return
