"""A sweep's results in Weights & Biases: curves, raw tables, figures and clips of a run folder."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vsr_lightning.evaluation.results import CONDITION, Row, normalise, read_table
from vsr_lightning.evaluation.videos import read_clips, write_gif


def log_results(run: Any, run_dir: Path, figures: Iterable[Path]) -> None:
    """Log the tables, curves, figures and clips of a run folder to `run`, a W&B run that is under way."""
    import wandb

    run_dir = Path(run_dir)
    summary = read_table(run_dir / "summary.csv")
    tables = {"results": read_table(run_dir / "results.csv"), "summary": summary}
    run.log({f"tables/{name}": _wandb_table(rows) for name, rows in tables.items()})
    _log_curves(run, summary)
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in map(Path, figures)}
    if images:
        run.log(images)
    if (run_dir / "clips.h5").exists():
        _log_clips(run, read_clips(run_dir))


def _wandb_table(rows: Sequence[Row]) -> Any:
    import wandb

    columns = list(rows[0]) if rows else []
    return wandb.Table(columns=[*columns], data=[[row[column] for column in columns] for row in rows])


def _log_curves(run: Any, summary: Sequence[Row]) -> None:
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
        column
        for column in CONDITION
        if column not in ("num_frames", "order") and len({normalise(row.get(column)) for row in rows}) > 1
    ]
    settings = [[f"{column}={row[column]}".replace("/", "_") for column in differing] for row in rows]
    return ["/".join([*setting, row["order"]]) for setting, row in zip(settings, rows, strict=True)]


def _log_clips(run: Any, clips: Sequence[Row]) -> None:
    import wandb

    with tempfile.TemporaryDirectory() as folder:  # W&B copies the files when they are logged
        videos = {}
        several = len({clip["video"] for clip in clips}) > 1
        for index, (clip, label) in enumerate(zip(clips, _labels(clips), strict=True)):
            path = Path(folder) / f"{index}.gif"
            write_gif(clip, path)
            name = f"{label}/video_{clip['video']}" if several else label
            videos[f"clips/{name}/frames_{clip['num_frames']:02d}"] = wandb.Video(str(path), format="gif")
        run.log(videos)
