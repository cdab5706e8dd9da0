"""Two real processes on the CPU: no item lost or repeated, the same rows as one process, training that resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killing import PATIENCE, assert_same_results, free_port, start_ranks

from vsr_lightning.config import load_config
from vsr_lightning.evaluation import results, videos
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.training.callbacks import LastCheckpoint

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments" / "moving_mnist"
CPU = ["trainer.accelerator=cpu", "trainer.progress=false", "data.digits=embedded"]
SWEEP = [
    "sampler.steps=4",
    "sampler.zeta=100",
    "sampler.restarts=[0.5]",
    "grid.videos=3",
    "grid.noises=1",
    "grid.num_frames=[1,3]",
]
VAE = [
    *("data.num_frames=2", "data.batch_size=1", "data.num_workers=0", "data.val_videos=2", "data.num_videos=7"),
    *("vae.latent_channels=4", "vae.widths=[8,8,8]", "vae.encoder_blocks=[1,1,1]", "vae.decoder_blocks=[1,1,1]"),
    *("training.max_steps=12", "training.val_every=12", "training.warmup_steps=2", "training.decay_steps=2"),
]


def output_of_two(*command):
    """Of two processes, the second of which is started by the first."""
    done = subprocess.run(
        [sys.executable, "-m", "vsr_lightning", *command, *CPU, "trainer.devices=2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def output_of_ranks(log, *arguments, codes=(0, 0), prepare=None):
    """Of the two processes that torchrun would start."""
    log.unlink(missing_ok=True)
    ranks = start_ranks([*arguments, *CPU, "trainer.devices=2"], log, prepare=prepare)
    try:
        for rank in ranks:
            rank.join(PATIENCE)
        assert tuple(rank.exitcode for rank in ranks) == codes, log.read_text()
    finally:
        for rank in ranks:
            rank.kill()
    return log.read_text()


def dump_weights_of_every_rank():
    """Beside each checkpoint."""
    save = LastCheckpoint._save

    def save_and_dump(self, trainer):
        save(self, trainer)
        torch.save(trainer.lightning_module.state_dict(), self.path.with_name(f"rank-{trainer.global_rank}.pt"))

    LastCheckpoint._save = save_and_dump


def rows_by_rank(folder):
    return [results._read_lines(path) for path in sorted(folder.glob("rows/rank-*.jsonl"))]


def test_a_sweep_by_two_processes_has_the_rows_of_one(tiny_prior, tmp_path):
    overrides = [*SWEEP, f"prior={tiny_prior}", f"runs_dir={tmp_path}", "grid.order=[random]", "trainer.batch_size=2"]
    path = EXPERIMENTS / "sweep_frames.yaml"
    out = output_of_two("sweep", str(path), *overrides, "name=two", "full=true")
    assert out.count("after the first batch") == out.count("waiting for other processes") == 1
    # The first process may be the last to finish: then it waits for less than the milliseconds that are kept.
    assert json.loads((tmp_path / "two" / "meta.json").read_text())["seconds"].keys() >= {"sampling", "waiting"}
    by_rank = rows_by_rank(tmp_path / "two")
    assert [len(rows) for rows in by_rank] == [4, 2]
    two = {results.item_key(row): row for rows in by_rank for row in rows}

    sweep(load_config(path, [*CPU, *overrides, "name=one"]))
    one = {results.item_key(row): row for row in results.read_rows(tmp_path / "one")}
    assert two.keys() == one.keys()
    assert len(two) == 6
    for key, row in one.items():
        for column in ("psnr_first", "psnr_mean"):
            assert two[key][column] == pytest.approx(row[column], abs=0.05)
    restored = [videos.load_restored(tmp_path / name) for name in ("one", "two")]
    for key, video in restored[0].items():
        assert abs(video.astype(int) - restored[1][key]).max() <= 1  # level of 255: rounding
    assert len({video.tobytes() for video in restored[0].values()}) == 6  # every item is a restoration of its own
    tables = [results.read_table(tmp_path / name / "summary.csv") for name in ("one", "two")]
    assert [(row["num_frames"], row["n"]) for row in tables[1]] == [(row["num_frames"], row["n"]) for row in tables[0]]


def test_fewer_items_than_processes(tiny_prior, tmp_path):
    overrides = [*SWEEP, f"prior={tiny_prior}", f"runs_dir={tmp_path}", "grid.videos=1", "grid.num_frames=[2]"]
    path = EXPERIMENTS / "sweep_frames.yaml"
    overrides += ["grid.order=[sequential]", "full=true"]
    out = output_of_ranks(tmp_path / "log.txt", "sweep", str(path), *overrides)
    assert "1 of 1 restorations" in out
    assert [row["status"] for row in results.read_rows(tmp_path / "frame_count")] == ["ok"]


def test_a_sweep_in_which_everything_failed_is_one_error_of_all_processes(tiny_prior, tmp_path):
    overrides = [*SWEEP, f"prior={tiny_prior}", f"runs_dir={tmp_path}", "grid.num_frames=[2]", "grid.order=[random]"]
    path = EXPERIMENTS / "sweep_frames.yaml"
    overrides += ["full=true", "grid.sigma_y=[3e18]"]
    out = output_of_ranks(tmp_path / "log.txt", "sweep", str(path), *overrides, codes=(1, 0))
    assert out.count("error: ") == out.count("all restorations failed") == 1
    assert (tmp_path / "frame_count" / "summary.csv").exists()


@pytest.mark.soak
def test_two_machines_have_the_rows_of_one_process(tiny_prior, tmp_path):
    """As far as one machine can show it: two launchers that meet at an address, each with one process."""
    overrides = [*SWEEP, *CPU, f"prior={tiny_prior}", f"runs_dir={tmp_path}", "grid.order=[random]", "full=true"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=test"]
    sweep_frames = ["-m", "vsr_lightning", "sweep", str(EXPERIMENTS / "sweep_frames.yaml"), *overrides]
    command = [*torchrun, *sweep_frames, "trainer.batch_size=1"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    machines = [subprocess.Popen([*command, "trainer.num_nodes=2", "name=two"], cwd=ROOT, env=env) for _ in range(2)]
    assert [machine.wait(timeout=300) for machine in machines] == [0, 0]
    assert [len(rows) for rows in rows_by_rank(tmp_path / "two")] == [3, 3]
    sweep(load_config(EXPERIMENTS / "sweep_frames.yaml", [*overrides, "trainer.batch_size=1", "name=one"]))
    assert_same_results(tmp_path / "two", tmp_path / "one")


def test_training_by_two_processes_stops_and_goes_on_with_equal_weights(tmp_path):
    command = ["train", str(EXPERIMENTS / "vae.yaml"), *VAE, f"runs_dir={tmp_path / 'runs'}"]

    def train(*overrides):
        return output_of_ranks(tmp_path / "log.txt", *command, *overrides, prepare=dump_weights_of_every_rank)

    folder = tmp_path / "runs" / "moving_mnist_vae"
    out = train("trainer.max_minutes=1e-9")
    assert "stopped at step 10" in out
    first = weights_of_ranks(folder)
    train()
    second = weights_of_ranks(folder)
    assert any(not torch.equal(value, first[name]) for name, value in second.items())
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["devices"]) == (12, 2)
    assert (folder / "prior" / "card.yaml").exists()

    output_of_two(*command, "name=straight")
    straight = torch.load(folder.with_name("straight") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in checkpoint["state_dict"].items():
        torch.testing.assert_close(value, straight[name], msg=name)


def weights_of_ranks(folder):
    """The weights of rank 0, which must be those of rank 1."""
    ranks = [torch.load(folder / "checkpoints" / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    return ranks[0]
