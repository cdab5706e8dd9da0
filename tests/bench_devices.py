"""Training on one device and on several, at one global batch: is the loss curve the same, and how much faster is it?

    python tests/bench_devices.py --devices 1
    python tests/bench_devices.py --devices 2

Each call makes the first steps of Moving MNIST's DiT as `train` does, on the same clips in the same order, and keeps
`losses-<devices>.csv`; noise levels and noise are drawn by each device, so single losses differ. Then all curves that
are there are compared in `devices.csv` and `devices.png`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
from bench import describe_run, positive, short_training, synchronise
from matplotlib.figure import Figure
from torch import Tensor

from vsr_lightning import processes
from vsr_lightning.figures.drawing import save
from vsr_lightning.files import read_table, write_json, write_table
from vsr_lightning.training import run

WARM_UP = 10  # steps before the clock starts: the first compiles, the next wait for the loader
SMOOTHED = 25  # steps that a point of the figure is the mean of


class Losses(L.Callback):
    """The loss of each step, the mean of all devices, and the seconds of the steps after the first `WARM_UP`."""

    def __init__(self) -> None:
        self.own: list[Tensor] = []
        self.losses: list[float] = []
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.own.append(outputs["loss"].detach())
        if len(self.own) in (WARM_UP, trainer.max_steps):
            synchronise(pl_module.device)
            self.seconds = time.perf_counter() - self.seconds

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses = pl_module.all_gather(torch.stack(self.own)).reshape(-1, len(self.own)).mean(dim=0).tolist()


def measure(devices: int, batch: int, steps: int, overrides: list[str], folder: Path) -> None:
    """Train and, in the first process, write `losses-<devices>.csv`."""
    settings = [f"data.batch_size={batch // devices}", "training.decay_steps=1"]
    settings += ["training.vae_prior=data/checkpoints/moving_mnist", *overrides]
    experiment = short_training("experiments/moving_mnist/dit.yaml", settings, steps, devices)
    recorder, make_trainer = Losses(), run.make_trainer

    def recording(*arguments: Any) -> L.Trainer:
        trainer = make_trainer(*arguments)
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        return trainer

    with tempfile.TemporaryDirectory() as experiment.runs_dir, mock.patch.object(run, "make_trainer", recording):
        run.train(experiment)
    if processes.rank() == 0:
        rate = (steps - WARM_UP) * batch / recorder.seconds
        rows = [
            {"step": step, "loss": loss, "batch": batch, "videos_per_second": rate}
            for step, loss in enumerate(recorder.losses, start=1)
        ]
        write_table(folder / f"losses-{devices}.csv", [*rows[0]], rows)
        write_json(folder / f"machine-{devices}.json", describe_run())


def compare(folder: Path) -> list[dict[str, Any]]:
    """The curves that are there, each beside the one of the fewest devices; the second half of their steps.

    The standard error is a lower bound: it takes steps as independent, although the weights remember.
    """
    curves: dict[int, list[dict[str, str]]] = {}
    for path in folder.glob("losses-*.csv"):
        curves[int(path.stem.removeprefix("losses-"))] = read_table(path, "measure it again")
    losses = {devices: [float(row["loss"]) for row in curves[devices]] for devices in sorted(curves)}
    rates = {devices: float(curves[devices][0]["videos_per_second"]) for devices in losses}
    fewest = min(losses)
    table = []
    for devices, values in losses.items():
        half = slice(len(values) // 2, None)
        pairs = [a - b for a, b in zip(values[half], losses[fewest][half], strict=True)]
        table.append(
            {
                "devices": devices,
                "batch": curves[devices][0]["batch"],
                "steps": len(values),
                "videos_per_second": rates[devices],
                "ratio": rates[devices] / rates[fewest],
                "loss": statistics.mean(values[half]),
                "loss_difference": statistics.mean(pairs),
                "loss_difference_se": statistics.stdev(pairs) / len(pairs) ** 0.5,
            }
        )
    write_table(folder / "devices.csv", [*table[0]], table)
    _draw(losses, folder / "devices.png")
    return table


def _draw(losses: dict[int, list[float]], path: Path) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for devices, values in losses.items():
        ends = range(SMOOTHED, len(values) + 1, SMOOTHED)
        points = [statistics.mean(values[end - SMOOTHED : end]) for end in ends]
        axes.plot([*ends], points, marker="." if devices > 1 else "o", label=f"{devices} device{'s'[: devices - 1]}")
    axes.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTHED} steps")
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--devices", type=positive, required=True)
    parser.add_argument(
        "--batch", type=positive, default=256 if on_gpu else 4, help="clips a step, on all devices (%(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=450 if on_gpu else 60, help="%(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_devices"))
    parser.add_argument("overrides", nargs="*", help="key=value, of experiments/moving_mnist/dit.yaml")
    options = parser.parse_intermixed_args()
    if options.batch % options.devices or options.steps < 2 * max(WARM_UP, SMOOTHED):
        parser.error(f"--batch must be a multiple of --devices, and --steps at least {2 * max(WARM_UP, SMOOTHED)}")
    options.output.mkdir(parents=True, exist_ok=True)
    measure(options.devices, options.batch, options.steps, options.overrides, options.output)
    if processes.rank() == 0:
        for row in compare(options.output):
            print(
                f"{row['devices']} devices, {row['batch']} clips a step: {row['videos_per_second']:.1f} videos/s, "
                f"{row['ratio']:.2f} x; loss {row['loss']:.4f}, differs by {row['loss_difference']:.4f} "
                f"+- {row['loss_difference_se']:.4f}"
            )
        print(options.output / "devices.csv")


if __name__ == "__main__":
    main()
