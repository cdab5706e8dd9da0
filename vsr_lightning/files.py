"""Files that are whole or absent, whatever kills the process or fills the disk; one process writes at a time."""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, or more than this user or process may have


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


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
