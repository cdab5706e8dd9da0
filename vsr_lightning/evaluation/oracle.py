"""The `oracle` command: what each condition of a sweep allows a method that is told how the digits move.

Measured as the sweep measures its own restorations, on the same clips and sensor noise, so that its curve can stand
beside theirs; see `inference/known_motion.py`.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vsr_lightning import files, provenance, runs
from vsr_lightning.conditions import CONDITION, Item
from vsr_lightning.data.clips import ClipDataModule, to_video
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.grid import frames_of, grid_items, observation_batch, row_maker, sampler_sections
from vsr_lightning.evaluation.job import check_videos
from vsr_lightning.evaluation.results import Row
from vsr_lightning.experiment import Experiment
from vsr_lightning.inference.known_motion import DigitMixture, fit_digits, sample_with_known_motion
from vsr_lightning.inference.lit_vsr import observe
from vsr_lightning.inference.noise import sampler_generator
from vsr_lightning.metrics import scores
from vsr_lightning.targets import build

MAX_DIGITS = 20_000  # to fit the mixture to: more take minutes, and change little


def oracle(experiment: Experiment) -> Path:
    """Write `oracle.csv` into the sweep's run folder: its summary, as if the oracle had been the sampler."""
    datamodule = build({"seed": experiment.seed, "batch_size": 1, **experiment.data}, "data", ClipDataModule)
    clips = datamodule.held_out_clips(experiment.grid.split)
    if not hasattr(clips, "corners"):
        raise UserError(f"data: the motion in {datamodule.clips_name(experiment.grid.split)} is not known")
    if experiment.grid.observe != "truth":
        raise UserError("grid.observe: the oracle has no VAE, and sees the clips themselves; leave it out")
    check_videos(clips, experiment)
    folder = runs.find_run(experiment, "sweep", {})  # of another sweep, its results would lie beside the wrong ones
    degradation = build(experiment.degradation, "degradation", Downsample)
    items = _items(experiment, degradation)
    for item in items:  # before minutes of work
        frames_of(item, len(clips[0]), experiment.seed)
    mixture = fit_digits(datamodule.train_clips().digits[:MAX_DIGITS])
    fixed = {
        "prior": f"mixture of {len(mixture.log_weights)} Gaussians",
        "seed": experiment.seed,
        "dataset": datamodule.clips_name(experiment.grid.split),
    }
    rows, means = measure(items, clips, degradation, mixture, fixed)
    folder.mkdir(parents=True, exist_ok=True)
    results.write_csv(folder / "oracle.csv", results.summarise(rows, means), first=(*CONDITION, "n"))
    files.write_json(folder / "oracle.json", {"command": provenance.command_line(), **provenance.describe_machine()})
    return folder / "oracle.csv"


def _items(experiment: Experiment, degradation: Downsample) -> list[Item]:
    """The items of the sweep, which the oracle restores once whatever the sampler's steps and zeta."""
    items = grid_items(experiment.grid, sampler_sections(experiment), degradation)
    return list(dict.fromkeys(replace(item, sampler="known_motion", steps=0, zeta=0.0) for item in items))


def measure(
    items: list[Item], clips: Dataset[Tensor], degradation: Downsample, mixture: DigitMixture, fixed: Row
) -> tuple[list[Row], list[Row]]:
    """Rows of the items, and of the means over the noise instances of a video and condition."""
    to_row = row_maker(fixed)
    rows: list[Row] = []
    samples: dict[Item, list[Tensor]] = defaultdict(list)
    for item in tqdm(items, desc="oracle", dynamic_ncols=True):
        x_hat = restore(item, clips, degradation, mixture, fixed["seed"])
        samples[replace(item, noise=0)].append(x_hat)
        rows.append(to_row(item) | _scores(x_hat, clips[item.video]) | {"status": "ok"})
    means = []
    for item, of_video in samples.items():
        measured = _scores(torch.stack(of_video).mean(dim=0), clips[item.video])
        of_mean = {f"{name}_of_mean": value for name, value in measured.items()}
        means.append(to_row(item) | of_mean | {"n_samples": len(of_video)})
    return rows, means


def restore(item: Item, clips: Dataset[Tensor], degradation: Downsample, mixture: DigitMixture, seed: int) -> Tensor:
    """The oracle's sample for an item, video (F, 1, H, W) in [-1, 1], from the observation that a sweep makes."""
    clip = clips[item.video]
    batch = observation_batch([(item, to_video(clip))], seed)
    variant = replace(degradation, factor=item.factor, kernel=item.kernel)
    operator = variant.operator([item.sigma_h], *clip.shape[1:3])
    y = observe(batch, operator)[0, :, 0]
    intensity = sample_with_known_motion(
        (y.double() + 1) / 2,
        (operator.A_v[0].double(), operator.A_h[0].double()),
        torch.from_numpy(clips.corners(item.video)),  # type: ignore[attr-defined]
        frames_of(item, len(clip), seed),
        item.sigma_y / 2,  # on [0, 1]
        mixture,
        sampler_generator((seed, item.video, item.noise)),
    )
    return (2 * intensity - 1).float()[:, None]


def _scores(x_hat: Tensor, clip: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in scores(x_hat[None], to_video(clip)[None]).items()}
