"""Many trajectories of simulated robot pushing: worker processes that each have a simulator of their own.

A worker imports this file and what it imports: neither torch nor Lightning, with which each would take 350 MB more.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from vsr_lightning.data.push_simulator import Arrays, PushSimulator
from vsr_lightning.data.splits import SPLITS
from vsr_lightning.errors import UserError

_simulator: PushSimulator | None = None  # of a worker process


def _start_worker() -> None:
    global _simulator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _simulator = PushSimulator()


def _die_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _simulate(key: tuple[int, ...], num_frames: int) -> Arrays:
    assert _simulator is not None
    return _simulator.trajectory(key, num_frames)


def simulate_split(split: str, seed: int, count: int, num_frames: int, processes: int) -> Iterator[Arrays]:
    """Trajectories 0 … count-1 of a split, in order, whatever the number of processes; arrays as `trajectory` has them.

    No two splits share a trajectory: each draws from random streams of its own.
    """
    keys = [(seed, SPLITS.index(split), index) for index in range(count)]
    # Spawned, not forked: an OpenGL context survives no fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_simulate, keys, [num_frames] * count, chunksize=4)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that simulates has died, of too little memory perhaps; fewer of them: data.processes=1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # when interrupted: do not simulate the rest first
