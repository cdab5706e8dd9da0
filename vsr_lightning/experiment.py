"""Everything that an experiment can say: its sections, their keys, defaults and limits."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsr_lightning.errors import UserError


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
    precision: str = "auto"  # bf16-mixed on a GPU, and to sample on a CPU that has bf16; else 32-true
    compile: str = "auto"  # "always", "never", or "auto": on a GPU, for jobs that outlast the compilation
    max_minutes: float = 0.0  # stop after so long with a checkpoint to resume from; 0 means no limit
    batch_size: int = 16  # of sampling, per device; training takes data.batch_size
    progress: bool = True
    deterministic: bool = False  # on a GPU: the same bits each time, for the same batch shape; slower

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


SAMPLER_LISTS = ("steps", "zeta")  # of the grid: they stand over a sampler's own


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

    @property
    def folder(self) -> Path:
        """Where the files of its run are."""
        return Path(self.runs_dir) / self.name


def _at_least(minimum: int, options: Any, section: str, *names: str) -> None:
    for name in names:
        if not getattr(options, name) >= minimum:
            raise UserError(f"{section}.{name}: {getattr(options, name)} is not at least {minimum}")
