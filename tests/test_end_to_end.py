"""The whole way by the command line: VAE, DiT, export, sweep, figures; and what Weights & Biases keeps of it."""

import json
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

from vsr_lightning.__main__ import main
from vsr_lightning.evaluation import results
from vsr_lightning.models.prior import fingerprint
from vsr_lightning.training import run

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "moving_mnist"
COMMON = ["data.digits=embedded", "data.num_frames=3", "trainer.accelerator=cpu", "trainer.progress=false"]
TRAIN = [
    *("data.batch_size=2", "data.num_workers=0", "data.val_videos=2", "training.max_steps=4"),
    *("training.val_every=2", "training.log_every=1", "training.warmup_steps=1", "training.decay_steps=1"),
]
VAE = ["vae.latent_channels=4", "vae.widths=[8,8,8]", "vae.encoder_blocks=[1,1,1]", "vae.decoder_blocks=[1,1,1]"]
DIT = [
    *("dit.latent_channels=4", "dit.num_frames=3", "dit.width=32", "dit.depth=1", "dit.heads=2"),
    *("training.check_videos=1", "training.check_steps=2"),
]
GRID = [
    *(
        "sampler.steps=3",
        "sampler.zeta=0.5",
        "sampler.restarts=[0.5]",
        "grid.videos=2",
        "grid.noises=1",
        "grid.num_frames=[1,2,3]",
    ),
    *("grid.order=[sequential,random]", "full=true"),
]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Type a command in an empty folder, with W&B offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr(run, "LATENT_VIDEOS", 32)
    monkeypatch.chdir(tmp_path)
    return lambda name, experiment, *overrides: main([name, str(EXPERIMENTS / experiment), *COMMON, *overrides])


def wandb_records(folder):
    """All records of the one offline run in a run folder."""
    (path,) = folder.glob("wandb/offline-run-*")
    return path, json_lines(path)


def json_lines(path):
    """The records of an offline run."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(inspect, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records):
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_from_digits_to_figures(command, tmp_path, capsys):
    assert command("train", "vae.yaml", *TRAIN, *VAE) == 0
    assert command("train", "dit.yaml", *TRAIN, *DIT) == 0
    assert command("export", "dit.yaml", *TRAIN, *DIT, "prior=shipped") == 0
    assert command("sweep", "sweep_frames.yaml", *GRID, "prior=shipped") == 0
    folder = tmp_path / "runs" / "frame_count"
    assert len(results.read_table(folder / "results.csv")) == 12
    output = capsys.readouterr().out
    assert "12 of 12 restorations" in output
    assert "runs/frame_count/fig3.png" in output
    assert output.rstrip().endswith("`")  # the last line says how to open the W&B run
    assert "wandb leet runs/frame_count/wandb/offline-run" in output.splitlines()[-1]

    (folder / "fig3.png").unlink()
    assert command("figures", "sweep_frames.yaml", *GRID, "prior=shipped") == 0
    assert (folder / "fig3.png").read_bytes()[:4] == b"\x89PNG"

    for name, losses in {
        "moving_mnist_vae": {"train/mse", "train/kl", "train/grad_norm", "val/psnr"},
        "moving_mnist_dit": {"train/loss", "train/loss_t0", "val/loss", "val/dps_psnr_first"},
    }.items():
        _, records = wandb_records(tmp_path / "runs" / name)
        rows = history(records)
        assert losses <= {key for row in rows for key in row}, name
        steps = [row["trainer/global_step"] for row in rows if "train/grad_norm" in row]
        assert steps == [0, 1, 2, 3], name

    path, records = wandb_records(folder)
    curve = {
        row["frame_count/num_frames"]: row["frame_count/random/psnr_first"]
        for row in history(records)
        if "frame_count/random/psnr_first" in row
    }
    summary = results.read_table(folder / "summary.csv")
    expected = {row["num_frames"]: row["psnr_first"] for row in summary if row["order"] == "random"}
    assert curve == pytest.approx(expected)
    assert set(curve) == {1, 2, 3}
    media = path / "files" / "media"
    (table,) = media.glob("table/tables/results_*.table.json")
    assert len(json.loads(table.read_text())["data"]) == 12
    assert {file.name.split("_")[0] for file in media.glob("images/figures/*.png")} == {"fig2", "fig3"}
    assert list(media.rglob("*.gif"))


def test_runs_can_be_compared_and_a_resumed_sweep_is_the_same_run(command, tiny_prior, capsys):
    sweep = [
        "sweep_frames.yaml",
        *GRID,
        f"prior={tiny_prior}",
        "data.num_frames=10",
        "grid.num_frames=[1]",
        "figures=[]",
    ]
    assert command("sweep", *sweep, "--limit", "1") == 0
    assert command("sweep", *sweep) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert command("sweep", *sweep) == 0  # nothing to restore, nothing to log
    goes = sorted(Path("runs", "frame_count", "wandb").glob("offline-run-*"))
    assert len(goes) == 2
    upload = re.search(r"wandb sync ([^`]+)`", last_line).group(1)
    assert sorted(map(Path, glob(upload))) == goes

    records = [json_lines(path) for path in goes]
    first, second = ([record["run"] for record in of_go if record["type"] == "run"][0] for of_go in records)
    assert first["run_id"] == second["run_id"]
    for of_run in (first, second):
        assert (of_run["run_group"], of_run["job_type"]) == ("MovingMNIST", "sweep")
        assert set(of_run["tags"]) == {f"tiny_prior@{fingerprint(tiny_prior)}", "moving_mnist embedded test"}
        config = of_run["config"]["update"]
        assert config["sampler"]["steps"] == 3
        assert config["prior_card"]["dit"]["target"].endswith("VideoDiT")
        assert "latent" not in config["prior_card"]
        assert {"git", "hardware"} <= config.keys()
        assert config["versions"]["torch"]

    numbers_of_frames = [
        [row["frame_count/num_frames"] for row in history(of_go) if "frame_count/num_frames" in row]
        for of_go in records
    ]
    assert numbers_of_frames == [[], [1]]  # a curve has one point of each
    tables = [
        {key.split(".")[0] for row in history(of_go) for key in row if key.startswith("tables/")} for of_go in records
    ]
    assert tables[0] == tables[1] == {"tables/means", "tables/results", "tables/summary"}


def test_mistakes_are_one_line_and_exit_code_2(command, tmp_path, capsys):
    assert command("sweep", "sweep_frames.yaml", *GRID, "prior=nowhere") == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: nowhere/card.yaml: no such file; name the folder of a prior that suits the data (prior=…; "
        "data/checkpoints has the shipped ones), or make one: make train-mnist, make train-bair\n"
    )
    assert not (tmp_path / "runs").exists()
