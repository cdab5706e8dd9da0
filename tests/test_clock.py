"""What a go of a sweep spends its time on: told at its end, and kept."""

import json
import time
from dataclasses import dataclass

import pytest
from tiny_sweep import FIGURES, experiment, written_rows

from vsr_lightning.evaluation.clock import Clock, tell
from vsr_lightning.evaluation.run import sweep


@dataclass
class Restored:
    """Of a `Restoration`, what the clock asks."""

    seconds: float
    seconds_of_scores: float


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        (0.0, "20 s after the first batch, 45.0% were sampling, 20.0% grid, scores and rows, 35.0%"),
        (
            5.0,
            "25 s after the first batch, 36.0% were sampling, 16.0% grid, scores and rows, "
            "20.0% waiting for other processes, 28.0%",
        ),
    ],
)
def test_what_the_time_was_spent_on_is_told_and_kept(waiting, told, tmp_path, monkeypatch, capsys):
    """Of four batches the first takes 60 s of sampling, each other 3 of its 4 s, and half a second of scores."""
    times = iter([100.0, 104.0, 108.0, 112.0, 113.0, *(end + waiting for end in (113.0, 116.0, 120.0))])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    (tmp_path / "meta.json").write_text('{"seconds": {}, "resumed": [{"git": "b"}, {"git": "c"}]}')
    clock = Clock()
    clock.end("tables")  # nothing was restored: nothing counts
    for seconds in (60.0, 3.0, 3.0, 3.0):
        clock.on_predict_batch_end(None, None, Restored(seconds, 0.5), None, 0)
    for part in ("rows", "waiting", "means", "wandb"):
        clock.end(part)
    tell(tmp_path, clock.seconds)
    assert capsys.readouterr().out == f"of the {told} means, tables, figures and W&B\n"
    seconds = {"sampling": 9.0, "scores": 1.5, "rows": 2.5, "waiting": waiting}
    seconds |= {"means": 3.0, "tables": 0.0, "figures": 0.0, "wandb": 4.0}
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {"seconds": {}, "resumed": [{"git": "b"}, {"git": "c", "seconds": seconds}]}


def test_the_clock_is_read_where_a_part_ends(tiny_prior, tmp_path, monkeypatch):
    """Nothing waits in a single process."""
    end, parts = Clock.end, []
    monkeypatch.setattr(Clock, "end", lambda self, part: (parts.append(part), end(self, part))[1])
    sweep(experiment(tiny_prior, tmp_path))
    batches = ["rows"] * 2  # the first of three begins the count
    assert parts == [*batches, "rows", "tables", "means", "tables", "figures", "wandb"]


def test_each_go_keeps_what_it_spent_its_time_on(tiny_prior, tmp_path, capsys):
    """From the end of its first batch; a go of one batch, or of none, has nothing to tell."""
    command = experiment(tiny_prior, tmp_path, FIGURES)
    for limit in (3, None, None):
        started = time.perf_counter()
        folder = sweep(command, limit)
        elapsed = time.perf_counter() - started
        meta = json.loads((folder / "meta.json").read_text())
        told = "after the first batch" in capsys.readouterr().out
        goes = [meta, *meta.get("resumed", [])]
        assert told == ("seconds" in goes[-1]) == (len(goes) == 2)
        if told:
            seconds = goes[-1]["seconds"]
            assert seconds["sampling"] == pytest.approx(sum(r["seconds"] for r in written_rows(folder)[6:]), abs=1e-3)
            assert seconds.pop("waiting") == 0
            assert min(seconds.values()) > 0
            assert sum(seconds.values()) < elapsed
    assert ["seconds" in go for go in goes] == [False, True, False]
