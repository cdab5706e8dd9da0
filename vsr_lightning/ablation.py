"""`ablate`: variants of one experiment, each trained, then compared on the same validation clips.

A variant is the experiment with some overrides. Its training run is `runs/<name>/<variant>`, its restorations are in
`sweep` therein, and what it is and cost in `variant.json`, written last. `runs/<name>/summary.csv` compares them in
pairs: all variants restore the same clips under the same sensor noise.
"""

import gc
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vsr_lightning import files, processes, runs
from vsr_lightning.averages import ItemKey, item_scores, known, paired_difference
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.experiment import Experiment
from vsr_lightning.models.prior import load_prior, read_card
from vsr_lightning.training.run import input_fingerprints, make_datamodule, train

COLUMNS = (
    *("variant", "psnr_first", "psnr_first_se", "psnr_first_of_mean", "difference", "difference_se", "videos", "n"),
    *("failed", "psnr_first_vae", "val_loss", "parameters", "train_steps", "train_seconds", "seed", "sampler", "steps"),
    *("zeta", "prior", "dataset", "hardware", "git", "overrides"),
)
COMMON = ("degradation", "sampler", "samplers", "grid")  # sections that variants share, or they would be no pairs


def ablate(base: Experiment, variants: Mapping[str, Experiment]) -> str:
    """Train and measure the variants that are not yet measured, then compare all that are: a table for the terminal.

    What is interrupted goes on where it stopped; a variant whose `variant.json` is there costs nothing again, even if
    its weights are gone. `trainer.max_minutes` is for all of them together.

    Args:
        base: whose name is the folder's, and whose `select` names the variants to train now, or none for all.
        variants: the experiment of each of `base.variants`. The seed of a variant is that of its training.

    Raises:
        UserError: variants cannot be compared, or a folder holds another one of that name.
    """
    check(base, variants)
    deadline = time.monotonic() + 60 * base.trainer.max_minutes if base.trainer.max_minutes else None
    selected = {name: variants[name] for name in base.select or variants}
    told = []
    for name, experiment in selected.items():
        with _alone(experiment):
            if not _record_path(experiment).exists():
                print(f"{name}: {' '.join(base.variants[name]) or 'nothing changed'}")
                if not _train_and_measure(name, experiment, base.seed, deadline):
                    told.append(f"{experiment.folder}: not finished; the same command goes on")
                    break
                write_summary(base, variants)  # as early as can be: the next variant may fail
                torch.compiler.reset()  # its networks are others
                gc.collect()
    return "\n".join([*told, *write_summary(base, variants)])


def check(base: Experiment, variants: Mapping[str, Experiment]) -> None:
    """Raise UserError, before anything is written, unless all variants can be trained and compared in pairs."""
    if not variants:
        raise UserError("variants: none; name some, as experiments/moving_mnist/ablations.yaml does")
    if processes.world_size(base) > 1:
        raise UserError("trainer.devices: ablate uses one; start it once for each GPU, with other variants in `select`")
    conditions = [len(values) for values in vars(base.grid).values() if isinstance(values, list)]
    if max(conditions) > 1:
        raise UserError("grid: variants are compared under one condition; give its lists one value each")
    processes.check_devices(base)
    for name, experiment in variants.items():
        if not name or experiment.name != f"{base.name}/{name}" or experiment.runs_dir != base.runs_dir:
            raise UserError(f"variants.{name}: cannot change name or runs_dir, which say where it is found again")
        if different := runs.differences(_common(base), _common(experiment)):
            raise UserError(f"variants.{name}: changes {different[0]}, which pairs must share; set it for all of them")
        runs.find_run(experiment, "train", {})
        runs.find_run(_restoring(experiment, base.seed), "sweep", {})
        if name in (base.select or variants) and not _record_path(experiment).exists():
            try:
                input_fingerprints(experiment)
            except UserError as error:
                way_out = "train it first, or leave the variant out by select=[…]"
                raise UserError(f"variants.{name}: {str(error).split(';')[0]}; {way_out}") from None


def compare(variants: Mapping[str, Experiment]) -> list[dict[str, Any]]:
    """A line with COLUMNS for each measured variant.

    `difference` is the PSNR of a variant less that of the first in the experiment, paired by video and noise instance,
    empty until that one is measured. Its standard error is over videos: it does not know that the same variant trained
    with another seed differs, too. `val_loss` compares only variants of one prediction and one VAE.
    """
    measured = [experiment for experiment in variants.values() if _record_path(experiment).exists()]
    first = next(iter(variants.values()))
    reference = _scores(first) if first in measured else {}
    lines = []
    for experiment in measured:
        path = _record_path(experiment)
        with files.reading(path, "remove it to measure the variant again"):
            record = json.loads(path.read_text())
        (line,) = results.read_table(experiment.folder / "sweep" / "summary.csv")
        scores = _scores(experiment)
        difference, error, _ = paired_difference(scores, reference)
        line |= {**record, "difference": known(difference), "difference_se": known(error)}
        line |= {"videos": len({video for video, _ in scores})}
        lines.append({column: line.get(column) for column in COLUMNS})
    return lines


def write_summary(base: Experiment, variants: Mapping[str, Experiment]) -> list[str]:
    """Write `summary.csv` of the variants measured so far, if there are any; what to tell of it."""
    lines = compare(variants)
    if not lines:
        return []
    path = base.folder / "summary.csv"
    with _alone(base):
        results.write_csv(path, lines, first=COLUMNS)
    return [_table(lines), str(path)]


def _train_and_measure(name: str, experiment: Experiment, seed: int, deadline: float | None) -> bool:
    """Train one variant, and restore validation clips with it. False if the time was up before."""
    prior = experiment.folder / "prior"
    if not (prior / "card.yaml").exists():
        train(_until(deadline, experiment))
    if not (prior / "card.yaml").exists():
        return False
    restored = sweep(_until(deadline, _restoring(experiment, seed)))
    if len(results.read_rows(restored)) < experiment.grid.videos * experiment.grid.noises:
        return False
    trained = read_card(prior)["training"][-1]
    record = {
        "variant": name,
        "overrides": " ".join(experiment.variants[name]),
        "val_loss": trained["metrics"].get("val/loss"),
        "parameters": sum(weight.numel() for weight in load_prior(prior).dit.parameters()),
        "train_steps": trained["steps"],
        "train_seconds": trained["seconds"],
        **{key: trained[key] for key in ("seed", "hardware", "git")},
    }
    files.write_json(_record_path(experiment), record)
    return True


def _until(deadline: float | None, experiment: Experiment) -> Experiment:
    """The experiment, to be stopped at the deadline."""
    if deadline is None:
        return experiment
    minutes = max((deadline - time.monotonic()) / 60, 1e-9)  # 0 would be no limit
    return replace(experiment, trainer=replace(experiment.trainer, max_minutes=minutes))


def _restoring(experiment: Experiment, seed: int) -> Experiment:
    """The sweep of a trained variant."""
    prior = str(experiment.folder / "prior")
    return replace(experiment, name=f"{experiment.name}/sweep", prior=prior, seed=seed)


def _common(experiment: Experiment) -> dict[str, Any]:
    """What all variants must share: the observations, the sampler and the clips that are restored."""
    identity = runs.identity(experiment, "sweep")
    clips = make_datamodule(experiment).clips_name(experiment.grid.split)
    return {key: identity[key] for key in COMMON} | {"data": clips}


def _scores(experiment: Experiment) -> dict[ItemKey, float]:
    """PSNR of the first frame by video and noise instance, of the restorations that did not fail."""
    rows = results.read_table(experiment.folder / "sweep" / "results.csv")
    return item_scores((row for row in rows if row["status"] == "ok"), "psnr_first")


@contextmanager
def _alone(experiment: Experiment) -> Iterator[None]:
    """Wait until no other process works in the experiment's folder."""
    folder = experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        files.lock(file, folder)
        yield


def _record_path(experiment: Experiment) -> Path:
    """Where it is written what a variant was measured to be."""
    return experiment.folder / "variant.json"


def _table(lines: list[dict[str, Any]]) -> str:
    header = ["variant", "train_seconds", "train_steps", "psnr_first", "psnr_first_of_mean", "difference"]
    cells = [
        [
            *(line["variant"], str(line["train_seconds"]), str(line["train_steps"])),
            _number(line["psnr_first"], line["psnr_first_se"]),
            _number(line["psnr_first_of_mean"]),
            _number(line["difference"], line["difference_se"]),
        ]
        for line in lines
    ]
    return results.align([header, *cells])


def _number(value: float | None, error: float | None = None) -> str:
    text = "" if value is None else f"{value:.2f}"
    return text if error is None else f"{text} ± {error:.2f}"
