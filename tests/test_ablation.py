"""Variants of one experiment, trained and compared: in pairs, once each, in any number of goes."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
import yaml

from vsr_lightning.__main__ import main
from vsr_lightning.ablation import COLUMNS
from vsr_lightning.config import load_config
from vsr_lightning.evaluation.results import read_table
from vsr_lightning.models.prior import load_prior
from vsr_lightning.targets import build

ABLATIONS = Path(__file__).parents[1] / "experiments" / "moving_mnist" / "ablations.yaml"
TINY = [
    *("data.digits=embedded", "data.embedded_share=0", "data.batch_size=2", "data.num_workers=0", "data.val_videos=2"),
    *("dit.latent_channels=4", "dit.width=32", "dit.depth=1", "dit.heads=2", "full=true"),
    *(
        "training.max_steps=4",
        "training.val_every=4",
        "training.warmup_steps=1",
        "grid.videos=2",
        "grid.noises=2",
        "sampler.steps=3",
    ),
    *("trainer.accelerator=cpu", "trainer.progress=false"),
]


@pytest.fixture
def ablate(tmp_path, tiny_prior, monkeypatch):
    """Type `ablate` in an empty folder, of the shipped experiment with these variants alone."""
    monkeypatch.chdir(tmp_path)
    shipped = load_config(ABLATIONS)

    def command(variants, *overrides):
        content = dataclasses.asdict(shipped) | {"variants": variants}
        Path("small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return main(["ablate", "small.yaml", *TINY, f"training.vae_prior={tiny_prior}", *overrides])

    return command


def summary():
    return {line["variant"]: line for line in read_table(Path("runs/ablations/summary.csv"))}


def scores(variant):
    rows = read_table(Path("runs/ablations") / variant / "sweep" / "results.csv")
    return {(row["video"], row["noise"]): row["psnr_first"] for row in rows}


def test_variants_are_compared_in_pairs(ablate, capsys):
    assert ablate({"reference": [], "eps": ["dit.prediction=eps"], "wide": ["dit.width=64"]}) == 0
    table = summary()
    assert list(table) == ["reference", "eps", "wide"]
    first, eps, wide = table.values()
    assert list(first) == list(COLUMNS)
    assert (first["difference"], first["difference_se"]) == (0, 0)
    reference, other = scores("reference"), scores("eps")
    assert len(reference) == len(other) == 4
    by_video = [fmean(other[video, noise] - reference[video, noise] for noise in (0, 1)) for video in (0, 1)]
    assert eps["difference"] == pytest.approx(fmean(by_video))
    assert eps["difference_se"] == pytest.approx(stdev(by_video) / math.sqrt(2))
    assert (eps["overrides"], eps["n"], eps["videos"], eps["steps"], eps["seed"]) == ("dit.prediction=eps", 4, 2, 3, 0)

    trained = load_prior("runs/ablations/wide/prior")
    assert wide["parameters"] == sum(weight.numel() for weight in trained.dit.parameters()) > first["parameters"]
    assert wide["prior"].startswith("prior@")
    assert (wide["train_steps"], wide["failed"]) == (4, 0)
    # v and eps have equal variance, but latents of this untrained VAE lie so close together that v is easy.
    assert 0 < wide["val_loss"] < 0.5 < eps["val_loss"] < 1.5
    output = capsys.readouterr().out
    assert "eps: dit.prediction=eps" in output
    assert output.rstrip().endswith("runs/ablations/summary.csv")


def test_a_measured_variant_costs_nothing_again_and_others_join(ablate, capsys):
    variants = {"reference": [], "eps": ["dit.prediction=eps"]}
    assert ablate(variants, "select=[reference]") == 0
    assert list(summary()) == ["reference"]
    before = scores("reference")
    shutil.rmtree("runs/ablations/reference/prior")  # a machine's disk does not last
    shutil.rmtree("runs/ablations/reference/checkpoints")
    capsys.readouterr()
    assert ablate(variants) == 0
    assert list(summary()) == ["reference", "eps"]
    assert scores("reference") == before
    assert "reference: " not in capsys.readouterr().out
    assert not Path("runs/ablations/reference/prior").exists()


def test_time_limit_stops_and_the_same_command_goes_on(ablate, capsys):
    variants = {"reference": []}
    assert ablate(variants, "training.max_steps=12", "trainer.max_minutes=1e-9") == 0
    assert "not finished; the same command goes on" in capsys.readouterr().out
    assert not Path("runs/ablations/reference/variant.json").exists()
    assert ablate(variants, "training.max_steps=12") == 0
    record = json.loads(Path("runs/ablations/reference/variant.json").read_text())
    assert record["train_steps"] == 12


def test_a_seed_is_of_the_training_alone(ablate):
    assert ablate({"reference": [], "seed_1": ["seed=1"]}) == 0
    first, second = summary().values()
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["prior"] != second["prior"]
    rows = [read_table(Path(f"runs/ablations/{name}/sweep/results.csv")) for name in ("reference", "seed_1")]
    assert [row["psnr_first_bicubic"] for row in rows[0]] == [row["psnr_first_bicubic"] for row in rows[1]]


def test_differences_wait_for_the_first_variant(ablate, capsys):
    variants = {"reference": [], "eps": ["dit.prediction=eps"]}
    assert ablate(variants, "select=[eps]") == 0
    assert summary()["eps"]["difference"] is None
    assert ablate(variants) == 0
    assert summary()["eps"]["difference"] is not None


def test_a_variant_that_failed_stays_in_the_table(ablate):
    assert ablate({"reference": [], "diverged": ["training.lr=1e30", "training.grad_clip=0"]}) == 0
    line = summary()["diverged"]
    assert (line["n"], line["failed"], line["psnr_first"], line["difference"]) == (0, 4, None, None)


def test_a_folder_is_not_taken_for_another_variants(ablate, capsys):
    variants = {"reference": []}
    assert ablate(variants) == 0
    for change in ("seed=7", "training.lr=0.5", "grid.noises=1", "sampler.steps=9"):
        assert ablate(variants, change) == 2
        assert "runs/ablations/reference" in capsys.readouterr().err


def test_a_damaged_record_is_named(ablate, capsys):
    assert ablate({"reference": []}) == 0
    Path("runs/ablations/reference/variant.json").write_text("{")
    assert ablate({"reference": []}) == 2
    error = capsys.readouterr().err
    assert "variant.json" in error
    assert "remove it" in error


@pytest.mark.parametrize(
    ("variants", "overrides", "told"),
    [
        ({}, [], "variants: none"),
        ({"reference": []}, ["select=[refrence]"], "select: 'refrence' is not in variants; did you mean 'reference'"),
        ({"wide": "dit.width=64"}, [], "variants.wide: is a list"),
        ({"wide": ["dit.widht=64"]}, [], "widht"),
        ({"reference": []}, ["trainer.devices=2"], "trainer.devices"),
        ({"reference": []}, ["grid.num_frames=[1,10]"], "one condition"),
        ({"reference": [], "louder": ["grid.sigma_y=[0.2]"]}, [], "variants.louder: changes grid.sigma_y"),
        ({"reference": [], "lost": ["training.vae_prior=nowhere"]}, [], "variants.lost: nowhere"),
        ({"": []}, [], "variants.: cannot change name"),
        ({"reference": [], "idle": ["sampler.zeta=9"]}, ["grid.zeta=[1]"], "'sampler.zeta=9': is not heeded"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(ablate, capsys, variants, overrides, told):
    assert ablate(variants, *overrides) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_shipped_variants_all_build():
    """All but the two whose VAEs must be trained first, of which the DiT alone is built."""
    experiment = load_config(ABLATIONS)
    assert {"paper", "factorized", "eps", "fixed_clips", "latent_4", "latent_16"} <= set(experiment.variants)
    sizes = {}
    for name, changes in experiment.variants.items():
        variant = load_config(ABLATIONS, changes)
        with torch.device("meta"):
            dit = build(variant.dit, "dit")
        sizes[name] = sum(weight.numel() for weight in dit.parameters())
        assert variant.grid.split == "val"
    for name in ("factorized", "wide", "narrow"):
        assert sizes[name] == pytest.approx(sizes["reference"], rel=0.15), name
    paper, variant = (
        load_config(ABLATIONS.with_name("paper.yaml")),
        load_config(ABLATIONS, experiment.variants["paper"]),
    )
    assert (variant.dit, variant.data) == (paper.dit, paper.data)
