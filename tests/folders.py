"""What is in a folder, to see whether a command has changed it."""

from pathlib import Path


def snapshot(folder: Path) -> dict[Path, bytes]:
    """The content of every file, at any depth, and the names of folders."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
