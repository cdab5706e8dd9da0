"""What a go of a sweep spends its time on once its first batch has ended: told at its end, and kept in `meta.json`."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from vsr_lightning import runs

RESTORING = (
    "sampling",
    "scores",  # measuring restorations
    "rows",  # all else until this process has written its last batch: grid, copies, waits for the disk
    "waiting",  # for other processes
)
CONCLUDING = ("means", "tables", "figures", "wandb")  # clips are among the tables


class Clock(Callback):
    """Seconds by part, of which nothing since the end of the first batch is left out.

    So without start-up and compilation. (On a CPU, which pads no batch, networks are compiled again for a smaller one,
    and that counts.) As a callback, to come after those that write what a batch gave.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*RESTORING, *CONCLUDING), 0.0)
        self._last: float | None = None  # when the latest part ended, as `time.perf_counter` tells it

    def end(self, part: str) -> None:
        """Count what has passed since the part before; nothing without a first batch."""
        if self._last is not None:
            now = time.perf_counter()
            self.seconds[part] += now - self._last
            self._last = now

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if self._last is None:
            self._last = time.perf_counter()
            return
        self.end("rows")
        for part, seconds in (("sampling", outputs.seconds), ("scores", outputs.seconds_of_scores)):
            self.seconds[part] += seconds
            self.seconds["rows"] -= seconds


def tell(folder: Path, seconds: dict[str, float]) -> None:
    """Tell in a line, and keep in `meta.json`, what a go spent its time on. Nothing, if it had one batch or none."""
    if not seconds["sampling"]:
        return
    runs.add_to_last_go(folder, {"seconds": {part: round(value, 3) for part, value in seconds.items()}})
    total = sum(seconds.values())

    def share(*parts: str) -> str:
        return f"{sum(seconds[part] for part in parts) / total:.1%}"

    shares = [f"{share('sampling')} were sampling", f"{share('scores', 'rows')} grid, scores and rows"]
    if seconds["waiting"]:
        shares.append(f"{share('waiting')} waiting for other processes")
    shares.append(f"{share(*CONCLUDING)} means, tables, figures and W&B")
    print(f"of the {total:.0f} s after the first batch, {', '.join(shares)}")
