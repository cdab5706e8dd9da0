"""Rows and clips of results as a sweep writes them, for tests to vary."""

import numpy as np

from vsr_lightning.conditions import CONDITION

SETTING = {
    "factor": 8,
    "kernel": "gaussian",
    "sigma_h": 2.0,
    "sigma_y": 0.02,
    "sampler": "dps",
    "steps": 250,
    "zeta": 1.0,
    "seed": 0,
    "prior": "data/checkpoints/moving_mnist",
    "dataset": "moving_mnist",
}


def item(video=0, noise=0, *, psnr=20.0, **other):
    """An item of `results.csv`, from 3 frames in sequential order unless `other` columns say otherwise."""
    key = {"video": video, "noise": noise, "num_frames": 3, "order": "sequential"}
    measured = {
        "psnr_first": psnr,
        "psnr_mean": psnr - 1,
        "ssim_mean": 0.9,
        "residual_rms": 0.02,
        "seconds": 1.5,
    }
    return SETTING | key | measured | {"status": "ok"} | other


def mean_of(row, n_samples, **scores):
    """The row of `means.csv` about an item's video."""
    return {column: row[column] for column in (*CONDITION, "video")} | scores | {"n_samples": n_samples}


def clip(value=0, frames=10, size=16):
    """Arguments of ClipWriter.append after the row; the restored clip has the one value given."""
    truth = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.ones((size, size, 1), np.uint8)
    return {
        "observed": truth[:, ::8, ::8] + 100,
        "restored": np.full_like(truth, value),
        "truth": truth,
        "frames": [0, 2],
    }
