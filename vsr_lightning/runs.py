"""A run's folder and its identity: what it is a run of, and whether a command may go on with it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from vsr_lightning import files
from vsr_lightning.conditions import used_samplers
from vsr_lightning.config import to_yaml
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import SAMPLER_LISTS, Experiment
from vsr_lightning.processes import precision, rank
from vsr_lightning.provenance import command_line, describe_machine, now
from vsr_lightning.wandb_logger import logging_mode

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


def find_run(experiment: Experiment, kind: str, inputs: dict[str, str]) -> Path:
    """The folder of a run, which need not exist; nothing is written. Raises UserError if it holds another run."""
    folder = experiment.folder
    if (folder / "config.yaml").exists():
        _check_same_run(folder, experiment, kind, _read_meta(folder / "meta.json"), inputs)
    elif any(path.stat().st_size for path in folder.glob("rows/*.jsonl")):  # it is written before any row
        raise UserError(
            f"{folder / 'config.yaml'}: is missing, and rows do not say all that they were made with; put it back from "
            f"a copy, or start a new run with name={experiment.name}-2"
        )
    return folder


def open_run(experiment: Experiment, kind: Literal["train", "sweep"], inputs: dict[str, str]) -> Path:
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
        computing = {**describe_machine(), "precision": precision(experiment, kind)}
        go = {"command": command_line(), "started": now(), **computing}
        for line in _changes(_last_go(meta), go):
            print(f"{folder}: {line}", file=sys.stderr)
        resumed = {**meta, "resumed": [*meta.get("resumed", []), go]}
        files.write_json(folder / "meta.json", resumed if meta else {"kind": kind, **go, "inputs": inputs})
    return folder


def keep_precision(experiment: Experiment) -> None:
    """Let `trainer.precision: auto` be what the experiment's folder was made in so far, if it is there.

    Its rows are averaged: a new default, or another machine's, is for new folders.
    """
    before = _last_go(_read_meta(experiment.folder / "meta.json"))
    if before and experiment.trainer.precision == "auto":
        experiment.trainer.precision = precision_of(before)


def precision_of(go: dict[str, Any]) -> str:
    """What a go computed in; of those that are older than its record, what was the default then."""
    return go.get("precision", "32-true" if go.get("hardware", "").startswith("CPU") else "bf16-mixed")


def _changes(before: dict[str, Any], go: dict[str, Any]) -> list[str]:
    """What a go does otherwise than the one before, though its results are of the same run."""
    if not before:
        return []
    lines = []
    if (git := before.get("git", go["git"])) != go["git"]:
        lines.append(f"so far made by other code ({git}); now by {go['git']}")
    if (precision := precision_of(before)) != go["precision"]:
        as_before = f"as before with trainer.precision={precision}"
        lines.append(f"so far made in {precision}; now in {go['precision']} ({as_before})")
    return lines


def add_to_last_go(folder: Path, content: dict[str, Any]) -> None:
    """Add to what `meta.json` keeps of what last began the run or went on with it."""
    meta = _read_meta(folder / "meta.json")
    _last_go(meta).update(content)
    files.write_json(folder / "meta.json", meta)


def _last_go(meta: dict[str, Any]) -> dict[str, Any]:
    return [meta, *meta.get("resumed", [])][-1]


def identity(experiment: Experiment | dict[str, Any], kind: str) -> dict[str, Any]:
    """The part of a configuration that the results of a run of that kind depend on.

    Keys that a stored configuration lacks count as their defaults: they are younger than its folder, and a new key's
    default means what the code did before. In sections that name a `target`, whose defaults are its signature's, only
    keys that were given count: a default there must not change its meaning either. What the grid stands over does not
    count (see `config.check_heeded`): no item is restored with it.
    """
    content = experiment if isinstance(experiment, dict) else dataclasses.asdict(experiment)
    kept = {key: _with_defaults(content.get(key, DEFAULTS[key]), DEFAULTS[key]) for key in IDENTITY[kind]}
    for section, keys in NOT_IDENTITY.items():
        content_of = kept.get(section)
        if isinstance(content_of, dict):
            kept[section] = {key: value for key, value in content_of.items() if key not in keys}
    if kind == "sweep":
        kept["samplers"] = used_samplers(kept)
        kept["sampler"] = kept["samplers"].pop("", {})
    return kept


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values in which two nested dicts differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [prefix.rstrip(".")]
    keys = [*a, *(key for key in b if key not in a)]
    return [found for key in keys for found in differences(a.get(key), b.get(key), f"{prefix}{key}.")]


def _with_defaults(section: Any, defaults: Any) -> Any:
    return {**defaults, **section} if isinstance(section, dict) else section


def _check_same_run(
    folder: Path, experiment: Experiment, kind: str, meta: dict[str, Any], inputs: dict[str, str]
) -> None:
    path = folder / "config.yaml"
    try:
        stored = identity(dict(yaml.safe_load(path.read_text())), kind)
    except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:  # or it is none
        raise UserError(f"{path}: cannot be read ({error.__class__.__name__}); choose a new name=") from None
    different = differences(stored, identity(experiment, kind))
    if any(name in different for name in ("grid.sampler", *(f"grid.{key}" for key in SAMPLER_LISTS))):
        different = [name for name in different if not name.startswith("sampler")]  # which of them count differs
    different += [name for name, value in inputs.items() if meta.get("inputs", {}).get(name, value) != value]
    if meta.get("kind", kind) != kind:
        different = [f"command: {meta['kind']}"]
    if different:
        raise UserError(
            f"{folder}: holds a run with another {', '.join(different[:3])}; "
            f"start a new one with name={experiment.name}-2, or repeat the stored configuration to finish that one"
        )


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
