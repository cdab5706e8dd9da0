"""A run's folder, its identity, its logger, and the devices it computes on; shared by training and evaluation."""

import dataclasses
import importlib.metadata
import json
import netrc
import os
import platform
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vsr_lightning import files
from vsr_lightning.config import Experiment, UserError, to_yaml

# What the results of a run depend on. Where and how it computes, and what it reports, may change when it is resumed;
# priors are known by the fingerprint of their weights, not by their folder.
IDENTITY = {
    "train": ("seed", "init", "data", "vae", "dit", "schedule", "training"),
    "sweep": ("seed", "data", "degradation", "sampler", "samplers", "grid"),
}
NOT_IDENTITY = {
    "data": ("dir", "num_workers", "processes", "source"),
    "training": ("vae_prior", "val_every", "save_every", "log_every", "check_videos", "check_steps", "check_zeta"),
}
DEFAULTS = dataclasses.asdict(Experiment())
BIN = ".venv/bin/" if sys.prefix == str(Path(".venv").absolute()) else ""  # how a user reaches installed commands
LOG_INTERVAL = 0.1  # seconds from logging to disk; a killed process loses what is younger, by default 15 s
MAX_TAG = 64  # characters, W&B's limit
PARENT = "VSR_PARENT"  # environment variable: the process that started this one as a further rank
WANDB_MODES = {  # what W&B's variable may say, its older words included
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "run": "online",
    "dryrun": "offline",
}
PACKAGES = ("vsr-lightning", "torch", "lightning", "torchmetrics", "numpy")


def find_run(experiment: Experiment, kind: str, inputs: dict[str, str]) -> Path:
    """The folder of a run, which need not exist; nothing is written. Raises UserError if it holds another run."""
    folder = Path(experiment.runs_dir) / experiment.name
    if (folder / "config.yaml").exists():
        _check_same_run(folder, experiment, kind, _read_meta(folder / "meta.json"), inputs)
    return folder


def open_run(experiment: Experiment, kind: str, inputs: dict[str, str]) -> Path:
    """Make or reopen the folder `runs_dir/name` of a run of a `kind`, `train` or `sweep`.

    `inputs` are fingerprints of what the results depend on beside the configuration. `meta.json` keeps them, what
    began the run, and under `resumed` what went on with it. Raises UserError if the folder holds another run.
    """
    logging_mode(experiment)  # told before anything is written
    folder = find_run(experiment, kind, inputs)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists():
            files.write_text(folder / "config.yaml", to_yaml(experiment))
        meta = _read_meta(folder / "meta.json")
        go = {"command": command_line(), "started": now(), **describe_machine()}
        resumed = {**meta, "resumed": [*meta.get("resumed", []), go]}
        write_json(folder / "meta.json", resumed if meta else {"kind": kind, **go, "inputs": inputs})
    return folder


def rank() -> int:
    """This process's number among those of the run, also before a Trainer exists."""
    return getattr(rank_zero_only, "rank", None) or 0


def identity(experiment: Experiment | dict[str, Any], kind: str) -> dict[str, Any]:
    """The part of a configuration that the results of a run of that kind depend on.

    Keys that a stored configuration lacks count as their defaults: they are younger than its folder, and a new key's
    default means what the code did before.
    """
    content = experiment if isinstance(experiment, dict) else dataclasses.asdict(experiment)
    kept = {key: _with_defaults(content.get(key, DEFAULTS[key]), DEFAULTS[key]) for key in IDENTITY[kind]}
    for section, keys in NOT_IDENTITY.items():
        content_of = kept.get(section)
        if isinstance(content_of, dict):
            kept[section] = {key: value for key, value in content_of.items() if key not in keys}
    return kept


def _with_defaults(section: Any, defaults: Any) -> Any:
    return {**defaults, **section} if isinstance(section, dict) else section


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


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Multiply float32 matrices as `torch.set_float32_matmul_precision(name)` says; then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C out of a Trainer as KeyboardInterrupt: of itself it ends the process, without a word, with code 1."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def strategy(experiment: Experiment) -> str:
    return "ddp" if world_size(experiment) > 1 else "auto"


def world_size(experiment: Experiment) -> int:
    """The number of processes, one a device, on all machines."""
    return experiment.trainer.devices * experiment.trainer.num_nodes


def has_fellows(experiment: Experiment) -> bool:
    """Whether other processes of the run are at work already: a launcher started them, or the first one's Trainer."""
    return world_size(experiment) > 1 and _is_launched()


def _is_launched() -> bool:
    return any(name in os.environ for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"))


def announce_to_children(experiment: Experiment) -> None:
    """Leave word of this process to those that its Trainer may start, for `end_with_parent`."""
    if world_size(experiment) > 1 and not _is_launched():
        os.environ[PARENT] = str(os.getpid())


def end_with_parent() -> None:
    """End this process, if a further rank, when the one that has started it is gone, a Trainer's or torchrun's.

    It would wait for the first rank for half an hour. A thread watches, as the main one may be waiting where no signal
    reaches it.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return
    parent = int(os.environ.get(PARENT, 0)) or os.getppid()  # the former is true even if that has died by now

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_devices(experiment: Experiment, launched: bool = True) -> None:
    """Raise UserError unless the devices, and if `launched` the processes, are there that the experiment counts on."""
    accelerator, available = experiment.trainer.accelerator, torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator: '{accelerator}' asked for, no GPU here")
    if uses_gpu(experiment) and experiment.trainer.devices > available:
        raise UserError(f"trainer.devices: {experiment.trainer.devices} GPUs asked for, {available} here")
    if launched:
        _check_launcher(experiment)


def _check_launcher(experiment: Experiment) -> None:
    """The processes that torchrun or SLURM started must be those that the experiment counts on."""
    started, expected = os.environ.get("WORLD_SIZE"), world_size(experiment)
    if started and int(started) != expected:
        machines = int(started) // int(os.environ.get("LOCAL_WORLD_SIZE", started))
        raise UserError(
            f"trainer.devices, trainer.num_nodes: {expected} processes expected, {started} were started; set "
            f"trainer.devices={int(started) // machines} trainer.num_nodes={machines}"
        )
    if experiment.trainer.num_nodes > 1 and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise UserError("trainer.num_nodes: several machines need torchrun or srun, as in experiments/slurm.sbatch")


def make_logger(
    experiment: Experiment,
    folder: Path,
    job_type: str,
    tags: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> WandbLogger | None:
    """W&B: online where an API key is at hand, else offline with a line that says how to upload. Never prompts.

    Runs are grouped by data set; `job_type` and `tags` tell them apart, and what they were made of. Their config is the
    experiment, code version, packages, hardware, and the `card` of the prior they use, without its latent statistics.
    """
    mode = logging_mode(experiment)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    # One W&B run for one run folder: a resumed run goes on in the same charts.
    run_id = f"{experiment.name}-{_folder_token(folder)}".replace("/", "-")
    config = {**dataclasses.asdict(experiment), **describe_machine()}
    if card is not None:
        config["prior_card"] = {key: value for key, value in card.items() if key != "latent"}
    logger = WandbLogger(
        name=experiment.name,
        group=experiment.data["target"].rpartition(".")[2],  # what may be compared
        job_type=job_type,
        tags=[tag[:MAX_TAG] for tag in tags],
        save_dir=str(folder.absolute()),  # W&B's service may have been started in another folder
        id=run_id,
        resume="allow" if mode == "online" else None,
        project=experiment.logging.project,
        entity=experiment.logging.entity or None,
        offline=mode == "offline",
        config=config,
        settings={"x_transaction_log_flush_interval": LOG_INTERVAL},
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes None, of which W&B warns
    if rank() == 0:
        print(_how_to_read(logger))
    return logger


def wait_for_log(logger: Any) -> None:
    """Wait until what was logged is on disk, as far as one can know: W&B's process writes it, and tells nobody."""
    if isinstance(logger, WandbLogger) and rank() == 0:
        time.sleep(3 * LOG_INTERVAL)


def close_logger(logger: WandbLogger | None) -> None:
    """End the W&B run, and say once more how to open it."""
    if logger is not None and rank() == 0:
        message = _how_to_read(logger)
        logger.experiment.finish()
        print(message)


def logging_mode(experiment: Experiment) -> str:
    """`online`, `offline` or `disabled`.

    Raises UserError for `online` without the key that W&B would prompt for, and for a `WANDB_MODE` that is none.
    """
    mode = experiment.logging.mode
    if mode == "auto":
        mode = _mode_of_environment() or ("online" if _has_api_key() else "offline")
    if mode == "online" and not _has_api_key():
        raise UserError("logging.mode: online needs a W&B API key; run `wandb login`, or set WANDB_API_KEY")
    return mode


def _mode_of_environment() -> str | None:
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in WANDB_MODES:
        raise UserError(f"WANDB_MODE: '{mode}' is none of {', '.join(WANDB_MODES)}; unset it, or choose one")
    return WANDB_MODES[mode] if mode else None


def write_json(path: Path, content: Any) -> None:
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def _check_same_run(
    folder: Path, experiment: Experiment, kind: str, meta: dict[str, Any], inputs: dict[str, str]
) -> None:
    path = folder / "config.yaml"
    try:
        stored = identity(dict(yaml.safe_load(path.read_text())), kind)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:  # or it is no configuration
        raise UserError(f"{path}: cannot be read ({error.__class__.__name__}); choose a new name=") from None
    different = differences(stored, identity(experiment, kind))
    different += [name for name, value in inputs.items() if meta.get("inputs", {}).get(name, value) != value]
    if meta.get("kind", kind) != kind:
        different = [f"command: {meta['kind']}"]
    if different:
        raise UserError(
            f"{folder}: holds a run with another {', '.join(different[:3])}; "
            f"start a new one with name={experiment.name}-2, or repeat the stored configuration to finish that one"
        )


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values in which two nested dicts differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [prefix.rstrip(".")]
    keys = [*a, *(key for key in b if key not in a)]
    return [found for key in keys for found in differences(a.get(key), b.get(key), f"{prefix}{key}.")]


def _how_to_read(logger: WandbLogger) -> str:
    run = logger.experiment
    if run.url:
        return f"W&B: {run.url}"
    folder = Path(os.path.relpath(Path(run.dir).parent))
    goes = folder.with_name(f"offline-run-*-{run.id}*")  # of a run that was resumed; "-1" ends one of the same second
    return f"W&B, offline: open it with `{BIN}wandb leet {folder}`, upload all goes with `{BIN}wandb sync {goes}`"


def _read_meta(path: Path) -> dict[str, Any]:
    """What began a run; empty where a run was killed before it was written. Raises UserError if it cannot be read."""
    try:
        meta = json.loads(path.read_text())
        if isinstance(meta, dict) and isinstance(meta.get("inputs", {}), dict):
            return meta
        reason = "is no record of a run"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({error.__class__.__name__})"
    raise UserError(
        f"{path}: {reason}; put it back from a copy, choose a new name=, or, if prior and data are what they were, "
        "delete it"
    )


def _folder_token(folder: Path) -> str:
    """A short random name kept in the folder, so that equal names in two places are two W&B runs."""
    path = folder / "wandb-id"
    if not path.exists() and rank() == 0:
        files.write_text(path, os.urandom(4).hex())
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
