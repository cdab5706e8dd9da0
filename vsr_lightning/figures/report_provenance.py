"""What the report says of a run in words: how much of its grid was restored, and where its numbers come from.

By `meta.json` (command, code, machine), by `config.yaml` (grid, samplers, degradation), and by the rows themselves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsr_lightning.conditions import items_of
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Grid
from vsr_lightning.figures.drawing import plural, samplers_of, section_text
from vsr_lightning.figures.reading import Row
from vsr_lightning.figures.report_words import SETTINGS, format_cell, label, to_number

Section = Mapping[str, Any]


def grid_size(config: Section) -> int | None:
    """How many restorations a `config.yaml` asks for; None if it has no grid, or one that no sweep would take."""
    if not config.get("grid"):
        return None
    known = vars(Grid())
    try:
        grid = Grid(**{key: value for key, value in config["grid"].items() if key in known})
    except UserError:
        return None
    degradation = config.get("degradation") or {}
    # How many there are does not depend on what sections say of steps, zeta and factor.
    samplers = {name: {"steps": 0, "zeta": 0.0} for name in grid.sampler or ["sampler"]}
    return len(items_of(grid, samplers, factor=1, kernel=degradation.get("kernel", "gaussian")))


def overview(results: Sequence[Row] | None, summary: Sequence[Row], planned: int | None) -> str:
    """How much was restored, of `planned` if that is known, and what failed of it.

    `results` is None where the folder has no `results.csv`: then `summary`'s counts are added up, if it has any.
    """
    if results is None:
        counts = [to_number(row["n"]) or 0 for row in summary if "n" in row]
        return f"{_restored(int(sum(counts)), planned)}, counted in summary.csv" if counts else ""
    ok = sum(row.get("status") == "ok" for row in results)
    videos, noises = (len({row.get(column) for row in results}) for column in ("video", "noise"))
    text = f"{_restored(ok, planned)} of {plural(videos, 'video')} × {plural(noises, 'noise instance')}"
    return text if ok == len(results) else f"{text}; {len(results) - ok} failed"


def _restored(number: int, planned: int | None) -> str:
    if planned is None or number >= planned:
        return plural(number, "restoration")
    return f"{number} of {plural(planned, 'restoration')},"


def provenance(folder: Path, meta: Section, rows: Sequence[Row]) -> dict[str, str]:
    """What `meta.json` and the rows say, by name. `rows` are those of `results.csv`, or of `summary.csv` without it."""
    facts = {"folder": str(folder)}
    by = ("git", "note", "hardware", "precision")  # a note is added by hand
    facts |= {name: str(meta[name]) for name in ("command", "started", *by) if name in meta}
    if versions := meta.get("versions"):
        facts["versions"] = ", ".join(f"{package} {version}" for package, version in versions.items())
    if resumed := meta.get("resumed"):
        goes = [", ".join(str(go[name]) for name in by if name in go) for go in resumed]
        facts["resumed"] = "; ".join(f"{go.get('started')} ({told})" for go, told in zip(resumed, goes, strict=True))
    for column in SETTINGS:
        values = dict.fromkeys(format_cell(column, row[column]) for row in rows if row.get(column))
        if values:
            facts[label(column)] = ", ".join(values)
    return facts


def configured(config: Section) -> dict[str, str]:
    """The prior's folder, the degradation and the samplers that a `config.yaml` uses, with their parameters."""
    grid = config.get("grid") or {}
    listed = [name for name in ("factor", "kernel") if grid.get(name)]  # the rows have what was used
    facts = {"prior’s folder": str(config["prior"])} if config.get("prior") else {}
    if degradation := config.get("degradation"):
        facts["degradation"] = section_text(degradation, without=listed)
    return facts | samplers_of(config)
