"""One self-contained HTML page about run folders: clips to step through, sortable tables, figures, provenance.

Made from the files of each folder alone; what a folder lacks is left out. `report.html` beside this file is the
template, which escapes every value; `report.css` and `report.js` go into the page, so that it needs no other file and
no network.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vsr_lightning.config import UserError
from vsr_lightning.figures.drawing import plural
from vsr_lightning.figures.reading import REMAKE, Row, read_table
from vsr_lightning.figures.report_clips import Clips, png_uri, read_viewer
from vsr_lightning.figures.report_tables import Table, comparison_table, in_order, make_table
from vsr_lightning.figures.report_words import SETTINGS, format_cell, label
from vsr_lightning.files import reading, write_text

TEMPLATES = Path(__file__).parent
CAPTIONS = {
    "fig2": "Restorations of one video beside what was observed of it and the truth",
    "fig3": "PSNR of the first frame against the number of observed frames",
    "fig4": "A video and its observations with the least and the most blur before decimation",
    "fig5": "PSNR of the first frame against the number of observed frames, by blur width",
    "fig6": "Restorations of single frames beside the baseline, the truth, and the errors of both",
    "fig7": "Restorations of videos beside what was observed of them and the truth",
    "samplers": "PSNR of the first frame against the guidance scale and against seconds, by sampler",
}


def make_report(run_dirs: Sequence[Path], target: Path) -> Path:
    """Write the page about `run_dirs`, in that order, to `target`, and return its path.

    A run folder holds at least `results.csv`. The same folders give the same page, byte for byte.

    Raises:
        UserError: if a folder has no `results.csv`.
        DamagedFile: if one of its files is damaged.
    """
    runs = _tell_apart([_read_run(Path(folder), f"run-{number}") for number, folder in enumerate(run_dirs, start=1)])
    page = _render(runs, comparison_table((run.name, run.summary) for run in runs))
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return target


def _render(runs: Sequence["Run"], comparison: Table | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    template = environment.get_template("report.html")
    return template.render(runs=runs, comparison=comparison, style=style, script=script)


# ---------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Picture:
    """A figure of a run: `source` is a data URI, the size is in pixels."""

    name: str
    caption: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """What the page shows of a run folder; `key` is unique on the page."""

    key: str
    name: str
    folder: str
    overview: str
    clips: Clips | None
    tables: list[Table]
    pictures: list[Picture]
    provenance: list[tuple[str, str]]
    files: dict[str, str]  # texts to show in full, by name
    summary: Sequence[Row]  # for the comparison


def _read_run(folder: Path, key: str) -> Run:
    if not (folder / "results.csv").is_file():
        raise UserError(f"{folder}: has no results.csv; name folders that a sweep wrote, as runs/frame_count")
    results = read_table(folder / "results.csv")
    tables = {path.stem: read_table(path) for path in in_order(folder.glob("*.csv")) if path.stem != "results"}
    files = {name: path for name in ("config.yaml", "meta.json") if (path := folder / name).is_file()}
    config, meta = (_read_mapping(files[name]) if name in files else {} for name in ("config.yaml", "meta.json"))
    clips = folder / "clips.h5"
    return Run(
        key=key,
        name=str(config.get("name") or folder.resolve().name),
        folder=str(folder),
        overview=_overview(results),
        clips=read_viewer(clips) if clips.is_file() else None,
        tables=[make_table(name, rows) for name, rows in tables.items() if rows],
        pictures=[_picture(path) for path in sorted(folder.glob("*.png"))],
        provenance=_provenance(folder, meta, results),
        files={name: path.read_text(encoding="utf-8") for name, path in files.items()},
        summary=tables.get("summary", []),
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file, or of JSON, which YAML includes."""
    with reading(path, "remove it, then repeat the sweep's command, which writes it anew"):
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _tell_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of the same name get their folder behind it."""
    counts = Counter(run.name for run in runs)
    return [replace(run, name=f"{run.name} ({run.folder})") if counts[run.name] > 1 else run for run in runs]


def _overview(results: Sequence[Row]) -> str:
    """How much was restored, and what failed of it."""
    ok = sum(row.get("status") == "ok" for row in results)
    videos, noises = (len({row.get(column) for row in results}) for column in ("video", "noise"))
    text = f"{plural(ok, 'restoration')} of {plural(videos, 'video')} × {plural(noises, 'noise instance')}"
    return text if ok == len(results) else f"{text}; {len(results) - ok} failed"


def _picture(path: Path) -> Picture:
    with reading(path, REMAKE), Image.open(path) as image:
        width, height = image.size
        image.verify()
    caption = CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    return Picture(path.name, caption, png_uri(path.read_bytes()), width, height)


def _provenance(folder: Path, meta: Mapping[str, Any], results: Sequence[Row]) -> list[tuple[str, str]]:
    """Where the numbers come from: code and machine by `meta.json`, the settings by the rows themselves."""
    facts = {"folder": str(folder)}
    facts |= {name: str(meta[name]) for name in ("command", "started", "git", "hardware") if name in meta}
    if versions := meta.get("versions"):
        facts["versions"] = ", ".join(f"{package} {version}" for package, version in versions.items())
    if resumed := meta.get("resumed"):
        facts["resumed"] = "; ".join(f"{go.get('started')} ({go.get('git')}, {go.get('hardware')})" for go in resumed)
    for column in SETTINGS:
        values = dict.fromkeys(format_cell(column, row[column]) for row in results if row.get(column))
        if values:
            facts[label(column)] = ", ".join(values)
    return list(facts.items())
