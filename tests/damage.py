"""What a failing disk or an interrupted copy makes of a file."""

from pathlib import Path


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def flip_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for index in range(len(content) // 8, len(content), max(1, len(content) // 64)):
        content[index] ^= 0xFF
    path.write_bytes(content)


def zero_the_end(path: Path) -> None:
    """Blocks that were never written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = (truncate, flip_bytes, zero_the_end, empty)
