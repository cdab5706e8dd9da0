"""One self-contained HTML page about run folders: clips to step through, sortable tables, figures, provenance.

Made from the files of each folder alone; what a folder lacks is left out. `report.html` beside this file is the
template, which escapes every value; `report.css` and `report.js` go into the page, so that it needs no other file and
no network.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vsr_lightning.errors import UserError
from vsr_lightning.figures.reading import CONFIG_REMAKE, REMAKE, Row, read_config, read_table
from vsr_lightning.figures.report_clips import Clips, png_uri, read_viewer
from vsr_lightning.figures.report_provenance import configured, grid_size, overview, provenance
from vsr_lightning.figures.report_tables import Table, comparison_table, in_order, make_table
from vsr_lightning.files import reading, write_text

TEMPLATES = Path(__file__).parent
CONFIG = "config.yaml"
METAS = ("meta.json", "machine.json")  # the latter of a benchmark
SHOWN = ("*.csv", "*.png", "clips.h5", *METAS)  # what a folder needs one of
CAPTIONS = {
    "fig2": "Restorations of one video beside what was observed of it and the truth",
    "fig3": "PSNR of the first frame against the number of observed frames",
    "fig4": "A video and its observations with the least and the most blur before decimation",
    "fig5": "PSNR of the first frame against the number of observed frames, by blur width",
    "fig6": "Restorations of single frames beside the baseline, the truth, and the errors of both",
    "fig7": "Restorations of videos beside what was observed of them and the truth",
    "samplers": "PSNR of the first frame by sampler, against seconds and, where it varies, the guidance scale",
}


def make_report(run_dirs: Sequence[Path], target: Path) -> Path:
    """Write the page about `run_dirs`, in that order and each once, to `target`, and return its path.

    A run folder holds at least one of SHOWN. The same folders give the same page, byte for byte.

    Raises:
        UserError: if a folder has nothing to show or is none, or `target` is a folder.
        DamagedFile: if one of its files is damaged.
    """
    target = Path(target)
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file, as --output {target / 'report.html'}")
    folders: dict[Path, Path] = {}  # as they were named, by where they are
    for folder in map(Path, run_dirs):
        folders.setdefault(folder.resolve(), folder)
    runs = _tell_apart([_read_run(folder, f"run-{number}") for number, folder in enumerate(folders.values(), start=1)])
    page = _render(runs, comparison_table((run.name, run.summary) for run in runs))
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
    provenance: dict[str, str]
    files: dict[str, str]  # texts to show in full, by name
    summary: Sequence[Row]  # for the comparison


def _read_run(folder: Path, key: str) -> Run:
    _check_folder(folder)
    tables = {path.stem: read_table(path) for path in in_order(folder.glob("*.csv"))}
    results, summary = tables.pop("results", None), tables.get("summary", [])
    files = {name: path for name in (CONFIG, *METAS) if (path := folder / name).is_file()}
    config = read_config(folder / CONFIG)
    meta = next((read_config(files[name]) for name in METAS if name in files), {})
    clips = folder / "clips.h5"
    with reading(folder / CONFIG, CONFIG_REMAKE):  # its sections may not be what they should
        planned, settings = grid_size(config), configured(config)
    return Run(
        key=key,
        name=str(config.get("name") or folder.resolve().name),
        folder=str(folder),
        overview=overview(results, summary, planned),
        clips=read_viewer(clips) if clips.is_file() else None,
        tables=[make_table(name, rows) for name, rows in tables.items() if rows],
        pictures=[_picture(path) for path in sorted(folder.glob("*.png"))],
        provenance=provenance(folder, meta, summary if results is None else results) | settings,
        files={name: path.read_text(encoding="utf-8") for name, path in files.items()},
        summary=summary,
    )


def _check_folder(folder: Path) -> None:
    """Raise UserError unless it is a folder with something to show."""
    if folder.is_file():
        raise UserError(f"{folder}: is a file; name the folder that it is in, {folder.parent}")
    if not any(path.is_file() for pattern in SHOWN for path in folder.glob(pattern)):
        what = "has no table, picture, clips or meta.json" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder}: {what}; name folders that a sweep wrote, as runs/frame_count")


def _tell_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of the same name get their folder behind it."""
    counts = Counter(run.name for run in runs)
    return [replace(run, name=f"{run.name} ({run.folder})") if counts[run.name] > 1 else run for run in runs]


def _picture(path: Path) -> Picture:
    with reading(path, REMAKE), Image.open(path) as image:
        width, height = image.size
        image.verify()
    caption = CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    return Picture(path.name, caption, png_uri(path.read_bytes()), width, height)
