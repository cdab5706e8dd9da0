"""A sweep's results in Weights & Biases: curves, tables, figures, clips and speed of a run folder."""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vsr_lightning import files, wandb_logger
from vsr_lightning.conditions import CONDITION, FRAMES, without
from vsr_lightning.evaluation.results import Row, normalise, read_table
from vsr_lightning.evaluation.videos import read_clips, write_gif
from vsr_lightning.experiment import Experiment


class ResultsLog:
    """What W&B lacks of the results in a run folder, so that each go of a sweep logs only news.

    A table, a figure or clips that are logged again take the place of the earlier ones. Points of a curve do not, so
    curves wait until every item has been tried (`complete`) and are logged once. `wandb/logged.json` in the run folder
    keeps what went where.
    """

    def __init__(self, experiment: Experiment, run_dir: Path, figures: Iterable[Path], complete: bool) -> None:
        self.run_dir, self.figures = Path(run_dir), [*map(Path, figures)]
        options = experiment.logging
        where = f"{wandb_logger.logging_mode(experiment)} {options.entity}/{options.project}"
        before = self._read()
        if before.get("where") != where:
            before = {}
        tables = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _tables(self.run_dir)}
        # Of pictures the names: those of the same numbers are the same.
        content = {"tables": tables, "figures": sorted(path.name for path in self.figures)}
        curves = complete or before.get("curves", False)
        self.new_results = content != before.get("content")
        self.new_curves = curves and not before.get("curves", False)
        self._now = {"where": where, "content": content, "curves": curves}

    @property
    def has_news(self) -> bool:
        return self.new_results or self.new_curves

    def write_to(self, run: Any) -> None:
        """Log what is new to `run`, a W&B run that is under way."""
        if self.new_results:
            log_results(run, self.run_dir, self.figures)
        if self.new_curves:
            log_curves(run, read_table(self.run_dir / "summary.csv"))

    def remember(self) -> None:
        """Take what is new as logged. To be called when the W&B run has ended: before, a kill might still lose it."""
        self._path.parent.mkdir(exist_ok=True)
        files.write_json(self._path, self._now)

    @property
    def _path(self) -> Path:
        return self.run_dir / "wandb" / "logged.json"  # goes where W&B's own files go

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):  # none, or damaged: all is news
            return {}


def log_results(run: Any, run_dir: Path, figures: Iterable[Path]) -> None:
    """Log the tables, speed, figures and clips of a run folder to `run`, a W&B run that is under way."""
    import wandb

    run_dir = Path(run_dir)
    clips = read_clips(run_dir) if (run_dir / "clips.h5").exists() else []
    _log_tables(run, run_dir)
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in map(Path, figures)}
    if images:
        run.log(images)
    if clips:
        _log_clips(run, clips)


def _log_tables(run: Any, run_dir: Path) -> None:
    tables = {path.stem: read_table(path) for path in _tables(run_dir)}
    run.log({f"tables/{name}": _wandb_table(rows) for name, rows in tables.items()})
    for name, value in _speed(tables["results"]).items():
        run.summary[name] = value


def _tables(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("*.csv"))


def _wandb_table(rows: Sequence[Row]) -> Any:
    import wandb

    table = wandb.Table(columns=[], data=[])
    for column in rows[0] if rows else []:
        cells = [row[column] for row in rows]
        if any(isinstance(cell, str) for cell in cells):  # W&B refuses a column that mixes texts and numbers
            cells = [None if cell is None else str(cell) for cell in cells]
        # It takes three times as long over columns that may have gaps, and twice as long over rows.
        table.add_column(column, cells, optional=any(map(_is_gap, cells)))
    return table


def _is_gap(cell: Any) -> bool:
    """Whether W&B takes a cell for an empty one."""
    return cell is None or cell != cell  # nan


def _speed(rows: Sequence[Row]) -> dict[str, float]:
    """How fast a device restored, over all items that are ok; empty without any."""
    timed = [row for row in rows if row["status"] == "ok" and row["seconds"]]
    if not timed:
        return {}
    seconds = sum(row["seconds"] for row in timed)
    return {
        "speed/sample_steps_per_s": sum(row["steps"] for row in timed) / seconds,
        "speed/seconds_per_restoration": seconds / len(timed),
    }


def log_curves(run: Any, summary: Sequence[Row]) -> None:
    """Every measured column against the number of observed frames, one curve for each order and setting."""
    step = "frame_count/num_frames"
    points: dict[int, dict[str, float]] = defaultdict(dict)
    for row, label in zip(summary, _labels(summary), strict=True):
        for column in row:
            if f"{column}_se" in row and row[column] is not None:
                points[row["num_frames"]][f"frame_count/{label}/{column}"] = row[column]
    # Exact names: the logger defines "*" against its own step, and which of two globs wins is random.
    run.define_metric(step)
    for name in sorted({name for values in points.values() for name in values}):
        run.define_metric(name, step_metric=step)
    for num_frames, values in sorted(points.items()):
        run.log({step: num_frames, **values})


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The order of frames, preceded by whatever else differs between `rows`: "sigma_h=2/random"."""
    differing = [
        column for column in without(CONDITION, *FRAMES) if len({normalise(row.get(column)) for row in rows}) > 1
    ]
    settings = [[f"{column}={row[column]}".replace("/", "_") for column in differing] for row in rows]
    return ["/".join([*setting, row["order"]]) for setting, row in zip(settings, rows, strict=True)]


def _log_clips(run: Any, clips: Sequence[Row]) -> None:
    """All clips under one name, which a panel can be given before any sweep; captions tell them apart."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        videos = []
        for index, (clip, label) in enumerate(zip(clips, _labels(clips), strict=True)):
            gif = Path(folder) / f"{index}.gif"
            write_gif(clip, gif)
            caption = f"{label}, frames: {clip['num_frames']}, video {clip['video']}"
            videos.append(wandb.Video(str(gif), caption=caption, format="gif"))
        run.log({"clips/restored": videos})  # W&B copies the files
