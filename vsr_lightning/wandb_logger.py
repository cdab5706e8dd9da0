"""The logger of a run: Weights & Biases, online or offline, never prompting."""

import dataclasses
import netrc
import os
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from vsr_lightning import files
from vsr_lightning.errors import UserError, first_line
from vsr_lightning.experiment import Experiment
from vsr_lightning.processes import rank
from vsr_lightning.provenance import describe_machine

BIN = ".venv/bin/" if sys.prefix == str(Path(".venv").absolute()) else ""  # how a user reaches installed commands
LOG_INTERVAL = 0.1  # seconds from logging to disk; a killed process loses what is younger, by default 15 s
MAX_TAG = 64  # characters, W&B's limit
WANDB_MODES = {  # what W&B's variable may say, its older words included
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "run": "online",
    "dryrun": "offline",
}


def make_logger(
    experiment: Experiment,
    folder: Path,
    job_type: str,
    tags: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> WandbLogger | None:
    """W&B: online where an API key is at hand, else offline with a line that says how to upload. Never prompts.

    Where W&B refuses the key or cannot be reached, it is offline, too, with a line that says why, unless `logging.mode`
    is `online`. Runs are grouped by data set; `job_type` and `tags` tell them apart, and what they were made of. Their
    config is the experiment, code version, packages, hardware, and the `card` of the prior they use, without its latent
    statistics. Raises UserError.
    """
    mode = logging_mode(experiment)
    if mode == "disabled":
        return None
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    config = {**dataclasses.asdict(experiment), **describe_machine()}
    if card is not None:
        config["prior_card"] = {key: value for key, value in card.items() if key != "latent"}

    def make(mode: str) -> WandbLogger:
        logger = WandbLogger(
            name=experiment.name,
            group=experiment.data["target"].rpartition(".")[2],  # what may be compared
            job_type=job_type,
            tags=[tag[:MAX_TAG] for tag in tags],
            save_dir=str(folder.absolute()),  # W&B's service may have been started in another folder
            # One W&B run for one run folder: a resumed run goes on in the same charts.
            id=f"{experiment.name}-{_folder_token(folder)}".replace("/", "-"),
            resume="allow" if mode == "online" else None,
            project=experiment.logging.project,
            entity=experiment.logging.entity or None,
            offline=mode == "offline",
            config=config,
            settings={"x_transaction_log_flush_interval": LOG_INTERVAL},
        )
        logger._wandb_init.pop("anonymous", None)  # Lightning passes None, of which W&B warns
        if rank() == 0:
            print(_how_to_read(logger))  # begins the W&B run
        return logger

    try:
        return make(mode)
    except wandb.errors.Error as error:  # of the key, the network, the project
        failure = first_line(error)
    if mode == "offline" or experiment.logging.mode == "online":
        raise UserError(f"W&B: {failure}; mend that, or set logging.mode=disabled")
    print(f"W&B: {failure}; logging offline", file=sys.stderr)
    wandb.teardown()  # its process holds on to the name of the run
    return make("offline")


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


def _has_api_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _how_to_read(logger: WandbLogger) -> str:
    run = logger.experiment
    if run.url:
        return f"W&B: {run.url}"
    folder = Path(os.path.relpath(Path(run.dir).parent))
    goes = folder.with_name(f"offline-run-*-{run.id}*")  # of a run that was resumed; "-1" ends one of the same second
    return f"W&B, offline: open it with `{BIN}wandb leet {folder}`, upload all goes with `{BIN}wandb sync {goes}`"


def _folder_token(folder: Path) -> str:
    """A short random name kept in the folder, so that equal names in two places are two W&B runs."""
    path = folder / "wandb-id"
    if not path.exists() and rank() == 0:
        files.write_text(path, os.urandom(4).hex())
    return path.read_text().strip() if path.exists() else "rank"
