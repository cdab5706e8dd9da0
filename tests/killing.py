"""Commands in real processes, which can be killed. Forked from one that has imported everything, they start fast."""

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vsr_lightning.evaluation import results, videos

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("vsr_lightning.__main__", "vsr_lightning.evaluation.run", "vsr_lightning.training.run"),
        "wandb.apis.public",  # whose import is seconds of wandb.init()
    ]
)
PATIENCE = 120  # seconds until a process counts as stuck


def start(
    arguments: list[str],
    log: Path,
    environment: Mapping[str, str] = os.environ,
    bytes_a_file: int | None = None,
    prepare: Callable[[], None] | None = None,
):
    """Run a command of the project in a process of its own; what it prints goes to the end of the file `log`.

    With `bytes_a_file`, the kernel lets no file grow larger than that. `prepare` is called first there.
    """
    # Without the W&B service of an earlier test in this process: it would outlive the kill, and hold on to the run.
    own = {key: value for key, value in environment.items() if key != "WANDB_SERVICE"}
    process = FORKS.Process(target=_run, args=(arguments, log, own, bytes_a_file, prepare), daemon=True)
    process.start()
    return process


def _run(
    arguments: list[str],
    log: Path,
    environment: dict[str, str],
    bytes_a_file: int | None,
    prepare: Callable[[], None] | None,
) -> None:
    import torch
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from vsr_lightning.__main__ import main

    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores Ctrl-C
    torch.set_num_threads(1)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # as it would be if Lightning were imported only now
    if bytes_a_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))
    if prepare is not None:
        prepare()
    sys.argv = ["vsr", *arguments]
    os._exit(main(arguments))  # the exit of a fork must not run what its parent registered


def start_ranks(
    arguments: list[str],
    log: Path,
    own: Sequence[list[str]] = ([], []),
    prepare: Callable[[], None] | None = None,
) -> list:
    """The processes that torchrun would start, each with arguments of its `own`; ending those left over is the
    caller's. `prepare`: see `start`.
    """
    world_size = len(own)
    common = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0, "TORCHELASTIC_USE_AGENT_STORE": False}
    ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(world_size)]
    return [
        start([*arguments, *more], log, os.environ | {k: str(v) for k, v in rank.items()}, prepare=prepare)
        for rank, more in zip(ranks, own, strict=True)
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def finish(process) -> int:
    """Wait for the end of a process; its exit code."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the process is stuck"
    return process.exitcode


def interrupt(process) -> int:
    """Ctrl-C; the exit code of the process."""
    os.kill(process.pid, signal.SIGINT)
    return finish(process)


def kill(process) -> bool:
    """Kill a process as `kill -9` does. Whether it was still there."""
    process.kill()
    return finish(process) == -signal.SIGKILL


def wait_until(condition: Callable[[], bool], process) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.exitcode is None:
        assert time.monotonic() < deadline, "the process is stuck"
        time.sleep(0.002)


def children(pid: int, file: str, holding: bytes) -> list[int]:
    """The processes started by one, of which this file of `/proc` holds these bytes.

    To be known by what they alone have: until it runs its own program, also `git` has its parent's command line.
    """
    started: list[str] = []
    for of_thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread is over
            started += of_thread.read_text().split()
    found = []
    for child in started:
        with contextlib.suppress(OSError):  # the child is over
            if holding in Path(f"/proc/{child}/{file}").read_bytes():
                found.append(int(child))
    return found


def is_alive(pid: int) -> bool:
    """Also not as a zombie that nobody has waited for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Killer:
    """Runs a sweep again and again, killing it at random moments after its first row, and checks what becomes of it.

    The moments of a go are uniform between the first row that it writes and its end; where no row is missing, between
    its start and its end. `rows_at_kills` has how many rows were there at each.

    Args:
        arguments: of the command, less `name=`.
        runs_dir: where its run folders go.
        seed: of the moments.
    """

    def __init__(self, arguments: list[str], runs_dir: Path, seed: int = 0) -> None:
        self.arguments, self.runs_dir, self.moments = arguments, runs_dir, random.Random(seed)
        self.log = runs_dir / "log.txt"
        self.sweeps = 0
        self.rows_at_kills: list[int] = []
        warm_up = FORKS.Process(target=int)  # the imports are no part of a sweep's seconds
        warm_up.start()
        finish(warm_up)
        undisturbed = start([*arguments, "name=undisturbed"], self.log)
        self._wait_for_rows("undisturbed", 1, undisturbed)
        first_row = time.monotonic()
        self._finish(undisturbed)
        self.seconds = time.monotonic() - first_row
        self.items = self._rows("undisturbed")
        started = time.monotonic()
        self._finish(start([*arguments, "name=undisturbed"], self.log))
        self.seconds_without_rows = time.monotonic() - started

    @property
    def kills(self) -> int:
        return len(self.rows_at_kills)

    def kill_until_done(self, kills: int) -> None:
        """One sweep, finished in spite of at most so many kills; then it must be as if nothing had been."""
        name = f"killed-{self.sweeps}"
        for _ in range(kills):
            before = self._rows(name)
            process = start([*self.arguments, f"name={name}"], self.log)
            if before < self.items:
                self._wait_for_rows(name, before + 1, process)
                longest = self.seconds * (self.items - before) / self.items
            else:
                longest = self.seconds_without_rows
            process.join(self.moments.uniform(0, longest))
            if not kill(process):
                assert process.exitcode == 0, self.log.read_text()
                break
            self.rows_at_kills.append(self._rows(name))
        self._finish(start([*self.arguments, f"name={name}"], self.log))
        self.sweeps += 1
        assert_same_results(self.runs_dir / name, self.runs_dir / "undisturbed")

    def _finish(self, process) -> None:
        assert finish(process) == 0, self.log.read_text()

    def _wait_for_rows(self, name: str, count: int, process) -> None:
        wait_until(lambda: self._rows(name) >= count, process)

    def _rows(self, name: str) -> int:
        """Whole rows on disk."""
        rows = self.runs_dir / name / "rows" / "rank-0.jsonl"
        return rows.read_bytes().count(b"\n") if rows.exists() else 0


def assert_same_results(found: Path, expected: Path) -> None:
    """Every file of results is equal but for the seconds, no row is there twice, and no half-written file is left."""
    for name in ("results.csv", "summary.csv", "means.csv"):
        assert _without_seconds(found / name) == _without_seconds(expected / name), name
    measured = [row for path in found.glob("rows/*.jsonl") for row in results._read_lines(path)]
    items = {results.item_key(row) for row in results.read_table(expected / "results.csv")}
    assert len(measured) == len(items)
    assert {results.item_key(row) for row in measured} == items
    for clip, other in zip(videos.read_clips(found), videos.read_clips(expected), strict=True):
        assert all((clip[name] == other[name]).all() for name in videos.CLIP_ARRAYS)
    assert not list(found.rglob("*.tmp"))


def _without_seconds(path: Path) -> list[dict]:
    return [
        {column: value for column, value in row.items() if not column.startswith("seconds")}
        for row in results.read_table(path)
    ]
