"""`ablate`: variants of one experiment, each trained for as long, then compared on the same validation clips.

A variant is the experiment with some overrides. Its training run is `runs/<name>/<variant>`, its restorations are in
`sweep` therein, and what it is and cost in `variant.json`, written last. `runs/<name>/summary.csv` compares them: in
pairs, for all variants restore the same clips under the same sensor noise.
"""

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vsr_lightning import runs
from vsr_lightning.config import Experiment, UserError
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.models.prior import load_prior, read_card
from vsr_lightning.training.run import train, validate

COLUMNS = (
    *("variant", "psnr_first", "psnr_first_se", "psnr_first_of_mean", "difference", "difference_se", "videos", "n"),
    *("psnr_first_vae", "val_loss", "parameters", "steps", "seconds", "seed", "prior", "hardware", "overrides"),
)


def ablate(base: Experiment, variants: Mapping[str, Experiment]) -> str:
    """Train and measure the variants that are not yet measured, then compare all that are: a table for the terminal.

    What is interrupted goes on where it stopped; a variant whose `variant.json` is there costs nothing again, even if
    its weights are gone. Differences are to the first variant that is measured.

    Args:
        base: whose name is the folder's, and whose `select` names the variants to train now, or none for all.
        variants: the experiment of each of `base.variants`.

    Raises:
        UserError: there is no variant, or several devices, over which runs cannot follow each other in one process.
    """
    if not variants:
        raise UserError("variants: none; name some, as experiments/moving_mnist/ablations.yaml does")
    if runs.world_size(base) > 1:
        raise UserError("trainer.devices: ablate uses one; start it once for each GPU, with other variants in `select`")
    for variant in base.select or variants:
        experiment = variants[variant]
        if not _record(experiment).exists():
            print(f"{variant}: {', '.join(base.variants[variant]) or 'nothing changed'}")
            if not measure(variant, experiment):
                return f"{_folder(experiment)}: not finished; the same command goes on"
            torch.compiler.reset()  # the next variant's networks are others
            gc.collect()
    lines = compare([_folder(experiment) for experiment in variants.values() if _record(experiment).exists()])
    path = _folder(base) / "summary.csv"
    results.write_csv(path, lines, first=COLUMNS)
    return f"{_table(lines)}\n{path}"


def measure(variant: str, experiment: Experiment) -> bool:
    """Train one variant, and restore validation clips with it. False if the time was up before."""
    folder = _folder(experiment)
    prior = folder / "prior"
    if not (prior / "card.yaml").exists():
        train(experiment)
    if not (prior / "card.yaml").exists():
        return False
    sampled = sweep(replace(experiment, name=f"{experiment.name}/sweep", prior=str(prior)))
    grid = experiment.grid
    if len(results.read_rows(sampled)) < grid.videos * grid.noises:
        return False
    record = read_card(prior)["training"][-1]
    content = {
        "variant": variant,
        "overrides": " ".join(experiment.variants[variant]),
        "val_loss": validate(experiment, prior)["val/loss"],
        "parameters": sum(weight.numel() for weight in load_prior(prior).dit.parameters()),
        **{key: record[key] for key in ("steps", "seconds", "seed", "hardware", "git")},
    }
    runs.write_json(_record(experiment), content)
    return True


def compare(folders: list[Path]) -> list[dict[str, Any]]:
    """A line with COLUMNS for each variant's folder; `difference` is its PSNR less that of the first, in pairs.

    Its standard error is over videos.
    """
    scores = [_scores(folder / "sweep") for folder in folders]
    lines = []
    for folder, of_variant in zip(folders, scores, strict=True):
        content = json.loads((folder / "variant.json").read_text())
        (summary,) = results.read_table(folder / "sweep" / "summary.csv")
        pairs = [
            {"video": key[0], "difference": score - scores[0][key]}
            for key, score in of_variant.items()
            if key in scores[0]
        ]
        difference, error = results.mean_and_error(pairs, "difference")
        videos = len({pair["video"] for pair in pairs})
        line = {**summary, **content, "difference": difference, "difference_se": error, "videos": videos}
        lines.append({column: line.get(column) for column in COLUMNS})
    return lines


def _scores(run_dir: Path) -> dict[tuple[Any, Any], float]:
    """PSNR of the first frame by video and noise instance, of the restorations that did not fail."""
    rows = results.read_table(run_dir / "results.csv")
    return {(row["video"], row["noise"]): row["psnr_first"] for row in rows if row["status"] == "ok"}


def _folder(experiment: Experiment) -> Path:
    return Path(experiment.runs_dir) / experiment.name


def _record(experiment: Experiment) -> Path:
    """What is written when a variant is measured."""
    return _folder(experiment) / "variant.json"


def _table(lines: list[dict[str, Any]]) -> str:
    header = ["variant", "seconds", "steps", "psnr_first", "psnr_first_of_mean", "difference", "val_loss"]
    cells = [
        [
            *(line["variant"], str(line["seconds"]), str(line["steps"])),
            _with_error(line["psnr_first"], line["psnr_first_se"]),
            f"{line['psnr_first_of_mean']:.2f}",
            _with_error(line["difference"], line["difference_se"]),
            f"{line['val_loss']:.4f}",
        ]
        for line in lines
    ]
    return results.align([header, *cells])


def _with_error(value: float | None, error: float | None) -> str:
    text = "" if value is None else f"{value:.2f}"
    return text if error is None else f"{text} ± {error:.2f}"
