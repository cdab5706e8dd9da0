"""Workers: their number changes nothing, none outlives its parent, and a dead one is told: `make test-sim`."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from killing import PATIENCE, children, is_alive

from vsr_lightning.data import push_workers
from vsr_lightning.data.push_workers import simulate_split
from vsr_lightning.errors import UserError

sim = pytest.mark.sim


def test_workers_import_neither_torch_nor_lightning():
    code = "import sys, vsr_lightning.data.push_workers; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@sim
def test_number_of_processes_changes_nothing():
    one, two = (list(simulate_split("val", 3, 5, 3, processes)) for processes in (1, 2))
    for first, second in zip(one, two, strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


@sim
def test_splits_and_seeds_share_no_trajectory():
    starts = [next(simulate_split(split, seed, 1, 2, 1)) for split in ("train", "val", "test") for seed in (0, 1)]
    assert len({one["endeffector_pos"].tobytes() for one in starts}) == 6


@sim
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "vsr_lightning", "data", "experiments/push_sim/data.yaml", f"data.dir={tmp_path}"]
    parent = subprocess.Popen([*command, "data.processes=1"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not (workers := children(parent.pid, "cmdline", b"spawn_main")):
        assert time.monotonic() < deadline, "no worker was started"
        time.sleep(0.1)
    time.sleep(2)
    assert all(is_alive(worker) for worker in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    assert not list(tmp_path.glob("*.h5"))


@sim
def test_a_dead_worker_is_one_line(monkeypatch):
    monkeypatch.setattr(push_workers, "_start_worker", end_at_once)
    with pytest.raises(UserError, match=r"data.processes"):
        list(simulate_split("val", 0, 2, 2, 1))


def end_at_once() -> None:
    os._exit(1)
