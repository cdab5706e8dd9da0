"""What a sweep has to do: its experiment checked, its prior, operator, sampler and clips loaded, its items listed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsr_lightning import processes, runs
from vsr_lightning.conditions import Item, widths
from vsr_lightning.data.clips import ClipDataModule
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.grid import degradations, grid_items, row_maker, sampler_sections
from vsr_lightning.evaluation.inventory import Inventory
from vsr_lightning.evaluation.results import Row
from vsr_lightning.experiment import Experiment, Grid
from vsr_lightning.inference.dps import Observation
from vsr_lightning.inference.lit_vsr import check_frames
from vsr_lightning.models.prior import Prior, fingerprint, load_prior
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.targets import build

OBSERVED = {"truth": "", "reconstruction": ", observed as reconstructed"}  # added to the name of the clips


@dataclass(frozen=True)
class Job:
    """A sweep, before and while it is run. `fixed` holds the result columns that all of its items share."""

    experiment: Experiment
    prior: Prior
    degradation: Downsample
    samplers: dict[str, Callable[..., Tensor]]  # by the name in their rows
    clips: Dataset[Tensor]  # uint8 (F, H, W, C) by video number
    items: list[Item]  # of the whole grid
    fixed: Row
    inputs: dict[str, str]  # what the results depend on beside the configuration

    @property
    def to_row(self) -> Callable[[Item], Row]:
        """An item's row, without what is measured."""
        return row_maker(self.fixed)

    def find_folder(self) -> Path:
        """The run folder, which need not exist; nothing is written.

        Raises UserError if it holds another run, or rows of another prior or data set, whatever else it says.
        """
        folder = runs.find_run(self.experiment, "sweep", self.inputs)
        for row in results.read_rows(folder):
            for column, value in self.fixed.items():
                if results.normalise(row.get(column)) != results.normalise(value):
                    raise UserError(
                        f"{folder}: holds rows of another {column} ({row.get(column)}, not {value}); "
                        f"start a new run with name={self.experiment.name}-2"
                    )
        return folder

    def missing(self, held: Inventory) -> list[Item]:
        """The items that failed, or of which a run folder lacks something, in the order of the grid."""
        return [item for item in self.items if not self._is_complete(item, held)]

    def _is_complete(self, item: Item, held: Inventory) -> bool:
        row = self.to_row(item)
        key, video = results.item_key(row), results.video_key(row)
        # The mean over all noise instances is what restorations are kept for.
        in_mean = key in held.restored or held.samples.get(video, 0) >= self.experiment.grid.noises
        return key in held.measured and in_mean and (video in held.clips or not self.keeps_clip(item))

    def keeps_clip(self, item: Item) -> bool:
        """Whether its videos are kept to look at."""
        return item.noise == 0 and item.video < self.experiment.grid.keep_videos


def prepare(experiment: Experiment, launched: bool = True) -> Job:
    """Check and load all that a sweep needs, its processes too if `launched`; nothing is written. Raises UserError."""
    processes.check_devices(experiment, launched)
    if not experiment.prior:
        raise UserError("prior: is empty; name a prior's folder, as prior=data/checkpoints/moving_mnist")
    if not experiment.degradation:
        raise UserError(
            "degradation: is missing; is this an experiment to train? A sweep includes one, as sweep_frames.yaml"
        )
    prior = load_prior(experiment.prior)
    check_frames(prior, experiment.grid.num_frames)
    degradation = build(experiment.degradation, "degradation", Downsample)
    datamodule = build({"seed": experiment.seed, "batch_size": 1, **experiment.data}, "data", ClipDataModule)
    clips = _clips(datamodule, experiment, prior)
    sections = sampler_sections(experiment)
    items = grid_items(experiment.grid, sections, degradation)
    samplers = {name: _sampler(section) for name, section in sections.items()}
    for name, steps in dict.fromkeys((item.sampler, item.steps) for item in items):
        try:
            rehearse(samplers[name], prior.schedule, steps)
        except UserError as error:
            message = str(error).replace("sampler.steps", "grid.steps") if experiment.grid.steps else error
            raise UserError(f"{name}: {message}") from None
    for variant in degradations(experiment.grid, degradation):
        variant.operator(widths(experiment.grid, variant.factor, variant.kernel), *prior.video_shape[-2:])
    fixed = _fixed_columns(experiment, datamodule, prior)
    _check_keys(items, row_maker(fixed), experiment.grid)
    datamodule.verify(experiment.grid.split)  # a second's reading, beside hours of results that it would spoil
    inputs = {key: fixed[key] for key in ("prior", "dataset")}
    if store := datamodule.fingerprint(experiment.grid.split):
        inputs["store"] = store
    return Job(experiment, prior, degradation, samplers, clips, items, fixed, inputs)


def _sampler(section: Mapping[str, Any]) -> Callable[..., Tensor]:
    """A sampler, its own parameters bound; `steps` and `zeta` come with each item."""
    section = {key: value for key, value in section.items() if key not in ("steps", "zeta")}
    if given := {"prior", "observation", "noise", "on_step"} & section.keys():
        raise UserError(f"{section['target']}: '{min(given)}' is given by the sweep; leave it out")
    return build(section, "sampler")


class _OneNumber:
    """The least prior: a video is one number, and all of it is noise."""

    latent_shape = video_shape = (1, 1, 1, 1)

    def __init__(self, schedule: LinearSchedule) -> None:
        self.schedule = schedule

    def encode(self, x: Tensor) -> Tensor:
        return x

    def eps(self, z_t: Tensor, t: Tensor) -> Tensor:
        return z_t

    def decode(self, z: Tensor) -> Tensor:
        return z


def rehearse(sampler: Callable[..., Tensor], schedule: LinearSchedule, steps: int) -> None:
    """Run a sampler on a prior that costs nothing: what its parameters contradict is told before a run begins.

    Raises UserError, as the sampler does, or if it is no sampler.
    """
    number = torch.ones(1, 1, 1, 1, 1)
    observation = Observation(number, lambda x: x, torch.zeros(1))
    try:
        sampler(_OneNumber(schedule), observation, lambda: number, steps=steps, zeta=0.0, on_step=None)
    except TypeError as error:
        raise UserError(f"target: cannot be called as a sampler ({error})") from error


def _clips(datamodule: ClipDataModule, experiment: Experiment, prior: Prior) -> Dataset[Tensor]:
    clips = datamodule.held_out_clips(experiment.grid.split)
    check_videos(clips, experiment)
    frames, height, width, channels = clips[0].shape
    if (frames, channels, height, width) != prior.video_shape:
        raise UserError(
            f"prior: {experiment.prior} makes videos {prior.video_shape} (F, C, H, W), "
            f"the data has {(frames, channels, height, width)}"
        )
    return clips


def check_videos(clips: Dataset[Tensor], experiment: Experiment) -> None:
    """Raise UserError unless there are as many clips as the grid asks for."""
    available = len(clips)  # type: ignore[arg-type]
    if experiment.grid.videos > available:
        raise UserError(
            f"grid.videos: {experiment.grid.videos} asked for, the {experiment.grid.split} split has {available}"
        )


def _check_keys(items: Iterable[Item], to_row: Callable[[Item], Row], grid: Grid) -> None:
    """Raise UserError if two conditions have one key in the results: the rows of one would stand for both."""
    conditions: dict[tuple, Item] = {}
    for item in items:
        if item.video == item.noise == 0:
            other = conditions.setdefault(results.condition_key(to_row(item)), item)
            if different := [name for name in asdict(item) if getattr(item, name) != getattr(other, name)]:
                name = different[0]
                key = "sigma_h_per_factor" if name == "sigma_h" and grid.sigma_h_per_factor else name
                raise UserError(
                    f"grid.{key}: {getattr(other, name)} and {getattr(item, name)} are one in the results, "
                    "which keep six digits; leave one out"
                )


def _fixed_columns(experiment: Experiment, datamodule: ClipDataModule, prior: Prior) -> Row:
    return {
        "seed": experiment.seed,
        "prior": f"{prior.card.get('name', 'prior')}@{fingerprint(experiment.prior)}",
        "dataset": datamodule.clips_name(experiment.grid.split) + OBSERVED[experiment.grid.observe],
    }
