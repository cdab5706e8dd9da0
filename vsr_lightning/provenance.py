"""What made a result, and when: the command, the code, its packages, the hardware."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("vsr-lightning", "torch", "lightning", "torchmetrics", "numpy")


def describe_machine() -> dict[str, Any]:
    """Code version, packages and hardware, for cards and meta.json."""
    return {
        "git": _git_hash(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hardware": hardware(),
    }


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores"


def now() -> str:
    """UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command_line(script: str = "-m vsr_lightning") -> str:
    """The command as a user would type it again."""
    return f"python {script} {shlex.join(sys.argv[1:])}".rstrip()


def _git_hash() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
