"""Experiments as YAML: files with `include:`, then `key=value` overrides, then `${...}` references.

A file may `include:` others (paths relative to itself), merged left to right and then overridden by the file's
own keys. So may each of its `samplers`, of which the others' section `sampler` is taken. Overrides come last, and
`${...}` references are resolved once, at the end.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vsr_lightning.errors import UserError, first_line, suggestion
from vsr_lightning.experiment import SAMPLER_LISTS, Experiment
from vsr_lightning.targets import check_target


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment; every key and type is checked before anything runs. Raises UserError."""
    merged = _read_yaml(Path(path))
    for override in overrides:
        merged = _merge(merged, _read_override(override))
    experiment = _resolve(merged, path)
    _check_targets(experiment)
    _check_choices(experiment)
    return experiment


def check_heeded(experiment: Experiment, overrides: Sequence[str]) -> None:
    """Raise UserError for an override of a sampler that nothing would heed, as a list of `grid` stands over it."""
    grid = experiment.grid
    for override in overrides:
        section, *keys = _path(_read_override(override))
        key = keys[-1] if keys else ""
        if section in ("sampler", "samplers") and key in SAMPLER_LISTS and getattr(grid, key):
            raise UserError(f"override '{override}': is not heeded, as grid.{key} lists {getattr(grid, key)}; set that")
        if section == "sampler" and grid.sampler:
            wanted = ".".join(["samplers", grid.sampler[0], *keys])
            wanted += f", or grid.{key} for all" if key in SAMPLER_LISTS else ""
            raise UserError(f"override '{override}': is not heeded, as grid.sampler names others; set {wanted}")
        if section == "samplers" and keys and keys[0] not in grid.sampler:
            raise UserError(f"override '{override}': is not heeded, as grid.sampler does not name {keys[0]}")


def _path(content: Any) -> list[str]:
    """The keys down to the value, or to a section of several, that an override sets."""
    path = []
    while isinstance(content, dict) and len(content) == 1:
        ((key, content),) = content.items()
        path.append(str(key))
    return path


def to_yaml(experiment: Experiment) -> str:
    """The resolved experiment as YAML, which load_config reads back to the same experiment."""
    return yaml.safe_dump(dataclasses.asdict(experiment), sort_keys=False)


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: includes itself")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; experiments are in experiments/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read as YAML: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of keys to values")
    seen = (*seen, path.resolve())
    included = _read_included(content, path, seen)
    _check_keys(content, Experiment, "", str(path))
    if isinstance(content.get("samplers"), dict):
        content["samplers"] = {name: _read_sampler(name, at, path, seen) for name, at in content["samplers"].items()}
    return _merge(included, content)


def _read_sampler(name: str, section: Any, path: Path, seen: tuple[Path, ...]) -> Any:
    """A section of `samplers` of the file `path`, on top of the section `sampler` of the files that it includes."""
    if not isinstance(section, dict) or "include" not in section:
        return section
    files = section["include"]
    base = _read_included(section, path, seen).get("sampler")
    if not base:
        raise UserError(f"{path}: samplers.{name}: {files} has no section 'sampler'")
    return _merge({"sampler": base}, {"sampler": section})["sampler"]


def _read_included(section: dict[str, Any], path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """What the files say that a section of the file `path` names as `include`, which is taken out of it."""
    includes = section.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise UserError(f"{path}: 'include' takes the path of a file, or a list of paths")
    merged: dict[str, Any] = {}
    for name in includes:
        merged = _merge(merged, _read_yaml(path.parent / name, seen))
    return merged


def _read_override(override: str) -> dict[str, Any]:
    if "=" not in override:
        raise UserError(f"override '{override}': write it as key=value, for example seed=1")
    if override.endswith("="):
        override += "''"  # nothing is the empty text, not null
    try:
        content: Any = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"override '{override}': {first_line(error)}") from None
    _check_keys(content, Experiment, "", f"override '{override}'")
    return content


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Merge recursively. Another `target:` replaces a section whole: the old parameters are not the new one's."""
    merged = dict(base)
    for key, value in update.items():
        old: Any = merged.get(key)
        mergeable = isinstance(old, dict) and isinstance(value, Mapping)
        if mergeable and "target" in value and value["target"] != old.get("target"):
            mergeable = False
        merged[key] = _merge(old, value) if mergeable else value
    return merged


def _check_keys(content: Mapping[str, Any], schema: type, prefix: str, source: str) -> None:
    hints = typing.get_type_hints(schema)
    for key, value in content.items():
        if key not in hints:
            raise UserError(f"{source}: unknown key '{prefix}{key}'{suggestion(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: '{prefix}{key}' is a section, not the value {value!r}")
            _check_keys(value, hints[key], f"{prefix}{key}.", source)
        elif isinstance(value, Mapping) and typing.get_origin(hints[key]) is not dict:
            raise UserError(f"{source}: '{prefix}{key}' is a value, not a section")
        elif typing.get_origin(hints[key]) is list and not isinstance(value, list) and "${" not in str(value):
            raise UserError(f"{source}: '{prefix}{key}' is a list, not the value {value!r}; write [{value}]")


def _resolve(content: Mapping[str, Any], path: str | Path) -> Experiment:
    """Check the types against the schema, and put values in place of `${...}` references."""
    try:
        config = OmegaConf.merge(OmegaConf.structured(Experiment), content)
        OmegaConf.resolve(config)
        experiment = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{path}: {f'key {key!r}: ' if key else ''}{first_line(error)}") from None
    assert isinstance(experiment, Experiment)
    return experiment


def _check_targets(experiment: Experiment) -> None:
    for name in ("data", "vae", "dit", "schedule", "degradation", "sampler"):
        if section := getattr(experiment, name):
            check_target(section, name)
    for name, section in experiment.samplers.items():
        if not isinstance(section, dict):
            raise UserError(f"samplers.{name}: is a section with a `target:`, not the value {section!r}")
        check_target(section, f"samplers.{name}")
    for target in experiment.figures:
        check_target({"target": target, "run_dir": ""}, "figures")


def _check_choices(experiment: Experiment) -> None:
    """What names samplers and variants must name some that are there."""
    for name in experiment.grid.sampler:
        if name not in experiment.samplers:
            raise UserError(f"grid.sampler: '{name}' is not in samplers{suggestion(name, experiment.samplers)}")
    for name in experiment.select:
        if name not in experiment.variants:
            raise UserError(f"select: '{name}' is not in variants{suggestion(name, experiment.variants)}")
    for name, changes in experiment.variants.items():
        if not isinstance(changes, list):
            raise UserError(f"variants.{name}: is a list of overrides, as [dit.width=512], not {changes!r}")
