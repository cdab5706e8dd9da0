"""A run's folder, its identity, its logger, and the devices it computes on; shared by training and evaluation."""

import dataclasses
import importlib.metadata
import json
import netrc
import os
import platform
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vsr_lightning.config import Experiment, UserError, to_yaml

# What may change between two starts of one run: where and how it computes, and what it reports. A prior is known by
# the fingerprint of its weights, not by its folder.
NOT_IDENTITY = ("prior", "trainer", "logging", "runs_dir", "figures", "without_gpu", "full")
NOT_IDENTITY_DATA = ("dir", "num_workers")
PACKAGES = ("vsr-lightning", "torch", "lightning", "torchmetrics", "numpy")


def open_run(experiment: Experiment, command: str, inputs: dict[str, str] | None = None) -> Path:
    """Make or reopen the folder `runs_dir/name`. Raises UserError if it holds a run of another configuration.

    `inputs` are fingerprints of files that the results depend on: they must not have changed either. `meta.json`
    keeps what began the run, and under `resumed` what went on with it.
    """
    logging_mode(experiment)  # told before anything is written
    folder = Path(experiment.runs_dir) / experiment.name
    path = folder / "config.yaml"
    if path.exists():
        _check_same_run(path, experiment)
    elif rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "config.yaml.tmp"
        temporary.write_text(to_yaml(experiment))
        temporary.replace(path)
    meta = _read_meta(folder / "meta.json")
    for name, fingerprint in (inputs or {}).items():
        if meta.get("inputs", {}).get(name, fingerprint) != fingerprint:
            raise UserError(f"{folder}: was begun with another {name}, whose files have changed since; use a new name=")
    if rank() == 0:
        go = {"command": command, "started": now(), **describe_machine()}
        write_json(
            folder / "meta.json",
            {**meta, "resumed": [*meta.get("resumed", []), go]} if meta else {**go, "inputs": inputs or {}},
        )
    return folder


def rank() -> int:
    """This process's number among those of the run, also before a Trainer exists."""
    return getattr(rank_zero_only, "rank", None) or 0


def identity(experiment: Experiment | dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a run's results depend on."""
    content = experiment if isinstance(experiment, dict) else dataclasses.asdict(experiment)
    kept = {key: value for key, value in content.items() if key not in NOT_IDENTITY}
    kept["data"] = {key: value for key, value in kept.get("data", {}).items() if key not in NOT_IDENTITY_DATA}
    return kept


def describe_machine() -> dict[str, Any]:
    """Code version, packages and hardware, for cards and meta.json."""
    return {
        "git": _git_hash(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hardware": hardware(),
    }


def now() -> str:
    """UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores"


def precision(experiment: Experiment) -> Any:
    """Lightning's precision name. On a CPU float32: bf16 would move results for a quarter of the time."""
    if experiment.trainer.precision != "auto":
        return experiment.trainer.precision
    return "bf16-mixed" if uses_gpu(experiment) else "32-true"


def uses_gpu(experiment: Experiment) -> bool:
    return experiment.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def strategy(experiment: Experiment) -> str:
    return "ddp" if experiment.trainer.devices > 1 else "auto"


def check_devices(experiment: Experiment) -> None:
    accelerator, available = experiment.trainer.accelerator, torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator: '{accelerator}' asked for, no GPU here")
    if uses_gpu(experiment) and experiment.trainer.devices > available:
        raise UserError(f"trainer.devices: {experiment.trainer.devices} GPUs asked for, {available} here")


def make_logger(experiment: Experiment, folder: Path) -> WandbLogger | None:
    """W&B: online where an API key is at hand, else offline with a line that says how to upload. Never prompts."""
    mode = logging_mode(experiment)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    # One W&B run for one run folder: a resumed run goes on in the same charts.
    run_id = f"{experiment.name}-{_folder_token(folder)}".replace("/", "-")
    logger = WandbLogger(
        name=experiment.name,
        save_dir=str(folder),
        id=run_id,
        resume="allow" if mode == "online" else None,
        project=experiment.logging.project,
        entity=experiment.logging.entity or None,
        offline=mode == "offline",
        config=dataclasses.asdict(experiment),
    )
    if rank() == 0 and mode == "offline":
        directory = Path(logger.experiment.dir).parent
        print(f"W&B is offline (no API key). Read the run: wandb leet {directory}  Upload it: wandb sync {directory}")
    return logger


def logging_mode(experiment: Experiment) -> str:
    """`online`, `offline` or `disabled`. Raises UserError for `online` without the key that W&B would prompt for."""
    mode = experiment.logging.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
    if mode == "online" and not _has_api_key():
        raise UserError("logging.mode: online needs a W&B API key; run `wandb login`, or set WANDB_API_KEY")
    return mode


def write_json(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def _check_same_run(path: Path, experiment: Experiment) -> None:
    try:
        stored = identity(dict(yaml.safe_load(path.read_text())))
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # or it is no configuration
        raise UserError(f"{path}: cannot be read ({error.__class__.__name__}); choose a new name=") from None
    different = differences(stored, identity(experiment))
    if different:
        raise UserError(
            f"{path.parent}: holds a run with another {', '.join(different[:3])}; "
            f"start a new one with name={experiment.name}-2, or repeat the stored configuration to finish that one"
        )


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values in which two nested dicts differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [prefix.rstrip(".")]
    keys = [*a, *(key for key in b if key not in a)]
    return [found for key in keys for found in differences(a.get(key), b.get(key), f"{prefix}{key}.")]


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _folder_token(folder: Path) -> str:
    """A short random name kept in the folder, so that equal names in two places are two W&B runs."""
    path = folder / "wandb-id"
    if not path.exists() and rank() == 0:
        path.write_text(os.urandom(4).hex())
    return path.read_text().strip() if path.exists() else "rank"


def _has_api_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


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


def command_line() -> str:
    """The command as a user would type it again."""
    return "python -m vsr_lightning " + " ".join(sys.argv[1:])
