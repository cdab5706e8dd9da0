"""Processes killed at any moment, a rank that dies, a full disk: the same command finishes what is missing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import (
    PATIENCE,
    Killer,
    assert_same_results,
    children,
    finish,
    interrupt,
    is_alive,
    kill,
    start,
    start_ranks,
    wait_until,
)
from tiny_sweep import written_rows

from vsr_lightning.__main__ import main
from vsr_lightning.config import load_config
from vsr_lightning.evaluation import restoring, results, run, videos

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "moving_mnist"
COMMON = ["data.digits=embedded", "trainer.accelerator=cpu", "trainer.progress=false"]
SWEEP = [
    *("data.test_videos=2", "trainer.batch_size=1", "full=true", "figures=[]"),
    *("sampler.steps=2", "sampler.zeta=0.5", "sampler.restarts=[0.5]"),
    *("grid.videos=2", "grid.noises=2", "grid.num_frames=[1,3]", "grid.order=[random]"),
]
ITEMS = 8
INTERRUPTED = "interrupted; the same command goes on from what is on disk"
TRAIN = [
    *("data.num_frames=2", "data.batch_size=2", "data.num_workers=0", "data.val_videos=2", "data.num_videos=15"),
    *("training.max_steps=24", "training.val_every=24", "training.save_every=4", "training.log_every=1"),
    *("training.warmup_steps=2", "training.decay_steps=2"),
]
NETWORKS = {
    "vae": [
        *("vae.latent_channels=4", "vae.widths=[8,8,8]", "vae.encoder_blocks=[1,1,1]", "vae.decoder_blocks=[1,1,1]"),
    ],
    "dit": [
        *("dit.latent_channels=4", "dit.num_frames=2", "dit.width=32", "dit.depth=1", "dit.heads=2"),
        *("training.check_videos=1", "training.check_steps=2"),
    ],
}


@pytest.fixture
def sweep_arguments(tiny_prior, tmp_path):
    (tmp_path / "runs").mkdir()
    return [
        *("sweep", str(EXPERIMENTS / "sweep_frames.yaml"), *COMMON, *SWEEP),
        *(f"prior={tiny_prior}", f"runs_dir={tmp_path / 'runs'}"),
    ]


def test_a_sweep_killed_five_times(sweep_arguments, tmp_path):
    killer = Killer(sweep_arguments, tmp_path / "runs")
    while killer.kills < 5:
        killer.kill_until_done(kills=5 - killer.kills)


@pytest.mark.soak
def test_sweeps_killed_two_hundred_times(sweep_arguments, tmp_path, capsys):
    killer = Killer([*sweep_arguments, "grid.noises=8"], tmp_path / "runs", seed=1)
    while killer.kills < 200:
        killer.kill_until_done(kills=min(10, 200 - killer.kills))
        with capsys.disabled():
            print(f"{killer.kills} of 200 kills, {killer.sweeps} sweeps as if nothing had been", flush=True)
    # Early and late, and when nothing was missing but tables.
    assert len({*killer.rows_at_kills}) > killer.items / 2, killer.rows_at_kills
    assert killer.items in killer.rows_at_kills


def count_rows(folder):
    return len(results.read_rows(folder))


def test_a_sweep_ends_when_it_is_told_to(sweep_arguments, tmp_path):
    """By `kill`, or by SLURM when the time is up: not after the last batch."""
    folder, log = tmp_path / "runs" / "frame_count", tmp_path / "log.txt"
    arguments = [*sweep_arguments, "sampler.steps=60"]
    process = start(arguments, log)
    wait_until(lambda: count_rows(folder) >= 1, process)
    process.terminate()
    assert finish(process) == -signal.SIGTERM, log.read_text()
    assert count_rows(folder) < ITEMS
    assert finish(start([*arguments, "--limit=3"], log)) == 0, log.read_text()
    meta = json.loads((folder / "meta.json").read_text())
    assert "seconds" not in meta  # of the go that was killed
    assert ["seconds" in go for go in meta["resumed"]] == [True]


def test_ctrl_c_ends_a_sweep_with_a_line(sweep_arguments, tmp_path):
    folder, log = tmp_path / "runs" / "frame_count", tmp_path / "log.txt"
    process = start([*sweep_arguments, "sampler.steps=60", "trainer.progress=true"], log)
    wait_until(lambda: count_rows(folder) >= 1, process)
    assert interrupt(process) == 130, log.read_text()
    assert log.read_text().splitlines()[-1] == INTERRUPTED
    assert count_rows(folder) < ITEMS


def test_ctrl_c_ends_a_training_with_a_line(tmp_path):
    log, checkpoint = tmp_path / "log.txt", tmp_path / "moving_mnist_vae" / "checkpoints" / "last.ckpt"
    vae = [*TRAIN, *NETWORKS["vae"], "training.max_steps=2000", "training.val_every=2000"]
    process = start(["train", str(EXPERIMENTS / "vae.yaml"), *COMMON, *vae, f"runs_dir={tmp_path}"], log)
    wait_until(checkpoint.exists, process)
    assert interrupt(process) == 130, log.read_text()
    assert log.read_text().splitlines()[-1] == INTERRUPTED
    assert step_of(checkpoint) < 2000


@pytest.mark.parametrize(
    ("moment", "told", "code"),
    [
        ("as soon as they are there", signal.SIGTERM, -signal.SIGTERM),
        ("as soon as they are there", signal.SIGKILL, -signal.SIGKILL),
        ("at work", signal.SIGTERM, -signal.SIGTERM),
        ("at work", signal.SIGINT, 130),
    ],
)
def test_so_do_the_processes_that_it_started(sweep_arguments, tmp_path, moment, told, code):
    folder = tmp_path / "runs" / "frame_count"
    arguments = [*sweep_arguments, "trainer.devices=2", "sampler.steps=100", "grid.noises=8"]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vsr_lightning", *arguments],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it is ignored
        )

    def wait_for(condition, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while not (found := condition()):
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        return found

    (child,) = wait_for(lambda: children(process.pid, "environ", b"LOCAL_RANK=1"))
    if moment == "at work":
        wait_for(lambda: sum(path.stat().st_size > 0 for path in folder.glob("rows/rank-*.jsonl")) == 2)
    process.send_signal(told)
    assert process.wait(PATIENCE) == code, (tmp_path / "log.txt").read_text()
    # It may still be importing; by itself it would wait for half an hour.
    wait_for(lambda: not is_alive(child), patience=60)
    assert count_rows(folder) < 4 * ITEMS


def test_a_rank_that_dies(sweep_arguments, tmp_path):
    """Two ranks again leave the rows of one undisturbed process, whichever died. (torchrun ends the other one.)"""
    log = tmp_path / "log.txt"
    arguments = [*sweep_arguments, "trainer.devices=2"]
    folder = tmp_path / "runs" / "frame_count"
    for dies, rows_before in ((1, 1), (0, 4)):
        ranks = start_ranks(arguments, log)
        wait_until(lambda rows_before=rows_before: count_rows(folder) >= rows_before, ranks[dies])
        assert kill(ranks[dies]), log.read_text()
        kill(ranks[1 - dies])
    assert [finish(rank) for rank in start_ranks(arguments, log)] == [0, 0], log.read_text()
    assert finish(start([*sweep_arguments, "name=undisturbed"], log)) == 0
    assert_same_results(folder, folder.with_name("undisturbed"))


def test_what_no_later_process_writes_over_is_removed(sweep_arguments, tmp_path):
    """One process goes on after two, in batches of other items than theirs."""
    folder = tmp_path / "runs" / "frame_count"
    leftovers = [folder / "rows" / "restored" / "of-other-items.npz.tmp", folder / "rows" / "clips-rank-1.h5.tmp"]
    leftovers[0].parent.mkdir(parents=True)
    for leftover in leftovers:
        leftover.write_bytes(b"half a file")
    of_another = folder / "rows" / "restored" / "being-written.npz.tmp"
    of_another.touch()
    os.utime(of_another, (time.time() + 3600,) * 2)
    assert main([*sweep_arguments, "--limit=1"]) == 0
    assert list(folder.rglob("*.tmp")) == [of_another]


def _killed(*_):
    raise RuntimeError("killed")


def test_an_orphan_of_a_killed_process_has_no_say(sweep_arguments, tmp_path, monkeypatch):
    """Killed after a batch's restoration and clip were saved, before its row was: another rank makes it again."""
    folder = tmp_path / "runs" / "frame_count"
    with monkeypatch.context() as patch:
        patch.setattr(results.RowWriter, "append", _killed)
        patch.setattr(restoring, "to_uint8", lambda video: torch.full_like(video, 7, dtype=torch.uint8).movedim(-3, -1))
        with pytest.raises(RuntimeError, match="killed"):
            run.sweep(load_config(sweep_arguments[1], sweep_arguments[2:]))
    assert [video.max() for video in videos.load_restored(folder).values()] == [7]
    (folder / "rows" / "clips-rank-0.h5").rename(folder / "rows" / "clips-rank--1.h5")  # sorts before rank 0's
    assert main(sweep_arguments) == 0
    assert main([*sweep_arguments, "name=undisturbed"]) == 0
    assert_same_results(folder, folder.with_name("undisturbed"))
    found, expected = (videos.load_restored(f) for f in (folder, folder.with_name("undisturbed")))
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in found)


@pytest.mark.parametrize("late", [1, 0])
def test_ranks_that_disagree_on_what_is_missing(sweep_arguments, tmp_path, late):
    """The file system of another machine shows rows late, here never: rank 0's list counts, and nobody waits."""
    log, done = tmp_path / "log.txt", tmp_path / "runs" / "frame_count"
    assert finish(start(sweep_arguments, log)) == 0, log.read_text()
    behind = tmp_path / "behind" / "frame_count"
    shutil.copytree(done, behind, ignore=shutil.ignore_patterns("rows", "means.csv"))
    own = [[f"runs_dir={(behind if rank == late else done).parent}"] for rank in range(2)]
    ranks = start_ranks([*sweep_arguments, "trainer.devices=2"], log, own)
    assert [finish(rank) for rank in ranks] == [0, 0], log.read_text()
    again = 0 if late else ITEMS // 2  # by each of the two
    assert (count_rows(done), count_rows(behind)) == (ITEMS, again)
    assert len(written_rows(done)) == ITEMS + again


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(sweep_arguments, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "runs" / "frame_count"
    fsync = os.fsync

    def full(descriptor):
        if count_rows(folder) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(sweep_arguments) == 2
    error = capfd.readouterr().err
    assert error == (
        f"error: {folder}/rows/rank-0.jsonl: No space left on device; make room, then type the same command again\n"
    )
    assert not list(folder.rglob("*.tmp"))
    assert main(sweep_arguments) == 0
    assert main([*sweep_arguments, "name=undisturbed"]) == 0
    assert_same_results(folder, folder.with_name("undisturbed"))


@pytest.mark.parametrize("bytes_a_file", [2000, 5000])
def test_no_file_can_grow(sweep_arguments, tmp_path, bytes_a_file):
    """As on a full disk, but by the kernel: rows (2,000 bytes), then HDF5, stop in the middle of a file."""
    folder = tmp_path / "runs" / "frame_count"
    log = tmp_path / "log.txt"
    assert finish(start(sweep_arguments, log, bytes_a_file=bytes_a_file)) == 2
    (line,) = log.read_text().splitlines()
    assert line.startswith(f"error: {folder}")
    assert line.endswith(": File too large; make room, then type the same command again")
    assert main(sweep_arguments) == 0
    assert count_rows(folder) == ITEMS


def steps_logged(folder):
    """Step to training loss, of all offline W&B runs of a run folder."""
    curve = {}
    for path in sorted(folder.glob("wandb/offline-run-*")):
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(inspect, capture_output=True, text=True).stdout.splitlines()
        for record in map(json.loads, lines):
            item = record.get("history", {}).get("item", {})
            for loss in {"train/mse", "train/loss"} & item.keys():  # of a VAE, of a DiT
                curve.setdefault(item["trainer/global_step"], set()).add(item[loss])
    return curve


@pytest.mark.parametrize("network", NETWORKS)
def test_a_killed_training_ends_in_the_same_weights_and_its_curve_has_no_gap(
    network, tiny_prior, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name.lower()))
    arguments = ["train", str(EXPERIMENTS / f"{network}.yaml"), *COMMON, *TRAIN, *NETWORKS[network]]
    arguments += [f"runs_dir={tmp_path}", *([f"training.vae_prior={tiny_prior}"] if network == "dit" else [])]
    log, folder = tmp_path / "log.txt", tmp_path / f"moving_mnist_{network}"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for step in (4, 16):
        process = start(arguments, log)
        wait_until(lambda step=step: checkpoint.exists() and step_of(checkpoint) >= step, process)
        assert kill(process), log.read_text()
    assert finish(start(arguments, log)) == 0, log.read_text()
    assert finish(start([*arguments, "name=straight"], log)) == 0

    found, expected = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (checkpoint, tmp_path / "straight" / "checkpoints" / "last.ckpt")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert not list(folder.rglob("*.tmp"))
    curve = steps_logged(folder)
    assert curve == steps_logged(tmp_path / "straight")
    assert sorted(curve) == list(range(24))


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]
