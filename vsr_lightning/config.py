"""The typed configuration: YAML files with `include:`, `key=value` overrides, and `target:` sections.

A file may `include:` others (paths relative to itself), merged left to right and then overridden by the file's
own keys. Overrides come last, and `${...}` references are resolved once, at the end. A section with a `target:`
names the class or function that it configures; its other keys are that callable's parameters.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

TARGET_PREFIXES = ("vsr_lightning.", "lightning.pytorch.", "torch.optim.")


class UserError(Exception):
    """A mistake of the user's making: one line on stderr naming the file or key and the way out, exit code 2."""


@dataclass
class Training:
    """How `train` fits a network. `stage` says which: the VAE, or the DiT in the latent space of a trained VAE."""

    stage: str = "vae"
    vae_prior: str = ""  # stage dit: folder holding the trained VAE; empty means the folder named by `init`
    max_steps: int = 1000
    max_seconds: float = 0.0  # finish after so long, compilation and validation not counted; 0 means no limit
    optimizer: str = "adamw"  # or "muon": Muon for the matrices in a DiT's blocks, at the same lr
    lr: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 500  # linear decay to zero over the last so many steps
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    timesteps: str = "uniform"  # stage dit: or "logit_normal", more of the middle (Esser et al. 2024, Eq. 19)
    kl_weight: float = 1e-5  # stage vae: weight of the KL divergence per latent number, against the MSE per pixel
    val_every: int = 1000
    save_every: int = 250
    log_every: int = 50
    check_videos: int = 4  # stage dit: validation clips of the posterior-sampling check; 0 turns it off
    check_steps: int = 50
    check_zeta: float = 0.5  # of dps_polyak, which needs no tuning to a prior

    def __post_init__(self) -> None:
        for name, known in {
            "stage": ("vae", "dit"),
            "optimizer": ("adamw", "muon"),
            "timesteps": ("uniform", "logit_normal"),
        }.items():
            if getattr(self, name) not in known:
                raise UserError(f"training.{name}: '{getattr(self, name)}' is not '{known[0]}' or '{known[1]}'")
        for name, only in {"optimizer": "adamw", "timesteps": "uniform"}.items():
            if self.stage == "vae" and getattr(self, name) != only:
                raise UserError(f"training.{name}: '{getattr(self, name)}' is for stage dit; leave it out")
        _at_least(1, self, "training", "max_steps", "log_every", "save_every", "val_every", "check_steps")
        _at_least(0, self, "training", "warmup_steps", "decay_steps", "weight_decay", "grad_clip", "kl_weight")
        _at_least(0, self, "training", "max_seconds", "lr", "check_videos", "check_zeta")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"training.betas: {self.betas} is not two numbers from 0 up to 1, as [0.9, 0.95]")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay: {self.ema_decay} is not from 0 up to 1, as 0.999")


@dataclass
class Trainer:
    """Where and how a run computes. No part of a run's identity: any of these may change when it is resumed."""

    accelerator: str = "auto"
    devices: int = 1  # of each machine
    num_nodes: int = 1  # machines; torchrun or srun starts the processes of several
    precision: str = "auto"  # bf16-mixed on a GPU, 32-true on a CPU
    compile: str = "auto"  # "always", "never", or "auto": on a GPU, for jobs that outlast the compilation
    max_minutes: float = 0.0  # stop after so long with a checkpoint to resume from; 0 means no limit
    batch_size: int = 16  # of sampling, per device; training takes data.batch_size
    progress: bool = True

    def __post_init__(self) -> None:
        for name, known in {
            "accelerator": ("auto", "cpu", "gpu", "cuda"),
            "precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
            "compile": ("auto", "always", "never"),
        }.items():
            if getattr(self, name) not in known:
                raise UserError(f"trainer.{name}: '{getattr(self, name)}' is none of {', '.join(known)}")
        _at_least(1, self, "trainer", "devices", "num_nodes", "batch_size")
        _at_least(0, self, "trainer", "max_minutes")


@dataclass
class Grid:
    """The conditions of a sweep: every combination of the lists, on `videos` clips with `noises` instances each.

    `sigma_h` is the width of the Gaussian; kernels without a width take part once, at 0.
    """

    split: str = "test"  # the clips: test, or val for tuning
    videos: int = 8
    noises: int = 10
    keep_videos: int = 1  # clips to look at, of noise instance 0 of the first so many videos of each condition
    # What is degraded: the clips, or `reconstruction`, what the VAE makes of them. The latter is an inverse crime,
    # there to see what it does: observations then hold nothing that the decoder cannot show.
    observe: str = "truth"
    num_frames: list[int] = field(default_factory=lambda: [10])
    order: list[str] = field(default_factory=lambda: ["sequential"])
    factor: list[int] = field(default_factory=list)  # empty: degradation.factor
    kernel: list[str] = field(default_factory=list)  # empty: degradation.kernel
    sigma_h: list[float] = field(default_factory=lambda: [2.0])  # HR pixels
    sigma_h_per_factor: list[float] = field(default_factory=list)  # widths in LR pixels, stand over sigma_h
    sigma_y: list[float] = field(default_factory=lambda: [0.02])
    steps: list[int] = field(default_factory=list)  # empty: sampler.steps
    zeta: list[float] = field(default_factory=list)  # empty: sampler.zeta
    sampler: list[str] = field(default_factory=list)  # names of `samplers`; empty: the section `sampler`

    def __post_init__(self) -> None:
        for name, known in {"split": ("test", "val"), "observe": ("truth", "reconstruction")}.items():
            if getattr(self, name) not in known:
                raise UserError(f"grid.{name}: '{getattr(self, name)}' is not '{known[0]}' or '{known[1]}'")
        _at_least(1, self, "grid", "videos", "noises")
        _at_least(0, self, "grid", "keep_videos")
        for name in ("num_frames", "order", "sigma_h", "sigma_y"):
            if not getattr(self, name):
                raise UserError(f"grid.{name}: the list is empty; give at least one condition")
        for name in ("sigma_h", "sigma_h_per_factor", "sigma_y", "zeta"):
            if not all(0 <= value < math.inf for value in getattr(self, name)):
                raise UserError(f"grid.{name}: {getattr(self, name)} holds a number that is negative or not finite")
        for name, values in vars(self).items():
            if isinstance(values, list) and len(set(values)) < len(values):
                raise UserError(f"grid.{name}: {values} lists a condition twice")
        for order in self.order:
            if order not in ("sequential", "random"):
                raise UserError(f"grid.order: '{order}' is not 'sequential' or 'random'")


@dataclass
class Logging:
    """Weights & Biases. `auto` is online where an API key is at hand, else offline; it never prompts."""

    project: str = "vsr-lightning"
    entity: str = ""
    mode: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "online", "offline", "disabled"):
            raise UserError(f"logging.mode: '{self.mode}' is not 'auto', 'online', 'offline' or 'disabled'")


@dataclass
class Experiment:
    """Everything a command needs. Sections typed as a dict hold a `target:` and its parameters."""

    name: str = "unnamed"
    seed: int = 0
    runs_dir: str = "runs"
    prior: str = ""  # folder of the prior that sampling loads and `export` writes
    init: str = ""  # folder of a prior to start training from
    data: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    dit: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    degradation: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    samplers: dict[str, Any] = field(default_factory=dict)  # several, by names that grid.sampler lists
    figures: list[str] = field(default_factory=list)  # functions that draw a run folder's figures
    without_gpu: list[str] = field(default_factory=list)  # overrides of a sweep, then called …_small, without a GPU
    full: bool = False  # the whole grid all the same
    unfinished: bool = False  # export a prior although its training has not reached training.max_steps
    variants: dict[str, Any] = field(default_factory=dict)  # lists of overrides by name: what `ablate` compares
    select: list[str] = field(default_factory=list)  # the variants to train now; empty: all
    training: Training = field(default_factory=Training)
    trainer: Trainer = field(default_factory=Trainer)
    grid: Grid = field(default_factory=Grid)
    logging: Logging = field(default_factory=Logging)

    def __post_init__(self) -> None:
        path = Path(self.name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise UserError(f"name: '{self.name}' does not name a folder within runs_dir")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: {self.seed} is not between 0 and 2^63")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment; every key and type is checked before anything runs. Raises UserError."""
    merged = _read_yaml(Path(path))
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override '{override}': write it as key=value, for example seed=1")
        if override.endswith("="):
            override += "''"  # nothing is the empty text, not null
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"override '{override}': {_first_line(error)}") from None
        _check_keys(parsed, Experiment, "", f"override '{override}'")
        merged = _merge(merged, parsed)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Experiment), merged)
        OmegaConf.resolve(config)
        experiment = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{path}: {f'key {key!r}: ' if key else ''}{_first_line(error)}") from None
    assert isinstance(experiment, Experiment)
    for name in ("data", "vae", "dit", "schedule", "degradation", "sampler"):
        if section := getattr(experiment, name):
            check_target(section, name)
    for name, section in experiment.samplers.items():
        if not isinstance(section, dict):
            raise UserError(f"samplers.{name}: is a section with a `target:`, not the value {section!r}")
        check_target(section, f"samplers.{name}")
    for name in experiment.grid.sampler:
        if name not in experiment.samplers:
            raise UserError(f"grid.sampler: '{name}' is not in samplers{_nearest(name, experiment.samplers)}")
    for name in experiment.select:
        if name not in experiment.variants:
            raise UserError(f"select: '{name}' is not in variants{_nearest(name, experiment.variants)}")
    for name, changes in experiment.variants.items():
        if not isinstance(changes, list):
            raise UserError(f"variants.{name}: is a list of overrides, as [dit.width=512], not {changes!r}")
    for target in experiment.figures:
        check_target({"target": target, "run_dir": ""}, "figures")
    return experiment


def to_yaml(experiment: Experiment) -> str:
    """The resolved experiment as YAML, which load_config reads back to the same experiment."""
    return yaml.safe_dump(dataclasses.asdict(experiment), sort_keys=False)


def build(section: Mapping[str, Any], key: str, kind: type = object, **given: Any) -> Any:
    """Make what a `target:` section names: an instance of a class, or a function with its parameters bound.

    `given` are arguments that the program supplies, and take precedence. `key` names the section in errors, and
    `kind` is what the instance must be. Raises UserError.
    """
    check_target(section, key)
    target = _resolve_target(section["target"], key)
    arguments = {name: value for name, value in section.items() if name != "target"} | given
    if not inspect.isclass(target):
        if kind is not object:
            raise UserError(f"{key}.target: {section['target']} is not a {kind.__name__}")
        return partial(target, **arguments)
    if not issubclass(target, kind):
        raise UserError(f"{key}.target: {section['target']} is not a {kind.__name__}")
    if inspect.isabstract(target):
        raise UserError(f"{key}.target: {section['target']} is a base; name one of its kinds")
    try:
        return target(**arguments)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # a parameter is missing or out of range
        raise UserError(f"{key}: {section['target']} cannot be built so: {_first_line(error)}") from error


def check_target(section: Mapping[str, Any], key: str) -> None:
    """Check a section's `target:` against the allow-list, and its keys and types against the signature."""
    if "target" not in section:
        raise UserError(f"{key}.target: missing; name the class to build")
    target = _resolve_target(section["target"], key)
    parameters = _parameters(target)
    for name, value in section.items():
        if name == "target":
            continue
        if name not in parameters:
            raise UserError(f"{key}.{name}: {section['target']} has no such parameter{_nearest(name, parameters)}")
        if not _fits(value, parameters[name]):
            expected = _told(parameters[name])
            raise UserError(f"{key}.{name}: {value!r} is not of type {expected}")


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: includes itself")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; experiments are in experiments/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read as YAML: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of keys to values")
    includes = content.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise UserError(f"{path}: 'include' takes the path of a file, or a list of paths")
    _check_keys(content, Experiment, "", str(path))
    merged: dict[str, Any] = {}
    for name in includes:
        merged = _merge(merged, _read_yaml(path.parent / name, (*seen, path.resolve())))
    return _merge(merged, content)


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
            raise UserError(f"{source}: unknown key '{prefix}{key}'{_nearest(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: '{prefix}{key}' is a section, not the value {value!r}")
            _check_keys(value, hints[key], f"{prefix}{key}.", source)
        elif isinstance(value, Mapping) and typing.get_origin(hints[key]) is not dict:
            raise UserError(f"{source}: '{prefix}{key}' is a value, not a section")
        elif typing.get_origin(hints[key]) is list and not isinstance(value, list) and "${" not in str(value):
            raise UserError(f"{source}: '{prefix}{key}' is a list, not the value {value!r}; write [{value}]")


def _resolve_target(name: Any, key: str) -> Callable[..., Any]:
    if not isinstance(name, str) or not name.startswith(TARGET_PREFIXES):
        raise UserError(f"{key}.target: '{name}' is not allowed; targets start with {', '.join(TARGET_PREFIXES)}")
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:  # the module itself, or what it needs
        raise UserError(f"{key}.target: '{name}' cannot be imported: {_first_line(error)}") from None
    target = getattr(module, attribute, None)
    if not callable(target):
        public = [member for member in dir(module) if not member.startswith("_")]
        raise UserError(f"{key}.target: '{module_name}' has no '{attribute}'{_nearest(attribute, public)}")
    return target


def _parameters(target: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of everything the target takes by keyword; parents' too where it passes **kwargs on."""
    hints: dict[str, Any] = {}
    classes = target.__mro__ if inspect.isclass(target) else (None,)
    for owner in classes:
        function = target if owner is None else owner.__dict__.get("__init__")
        if function is None:
            continue
        signature = inspect.signature(function).parameters.values()
        known = typing.get_type_hints(function)
        for parameter in signature:
            if parameter.name != "self" and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                hints.setdefault(parameter.name, known.get(parameter.name, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            break
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be of a type."""
    if hint is Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint in (type(None), None):
        return value is None
    if hint is bool or isinstance(value, bool):
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float)
    if hint is Path:
        return isinstance(value, str)
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    return isinstance(value, hint) if inspect.isclass(hint) else True


def _told(hint: Any) -> str:
    """A type, in a user's words."""
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return f"list of {_told(typing.get_args(hint)[0])}, written [..., ...]"
    return getattr(hint, "__name__", str(hint))


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, [str(key) for key in known], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(map(str, known)))}"


def _at_least(minimum: int, options: Any, section: str, *names: str) -> None:
    for name in names:
        if not getattr(options, name) >= minimum:
            raise UserError(f"{section}.{name}: {getattr(options, name)} is not at least {minimum}")


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).strip().split("\n")[0]
