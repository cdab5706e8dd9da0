"""What is damaged in a run folder: the sweep's command names it, makes it again, and changes no number."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import DAMAGES, empty, truncate
from folders import snapshot
from tiny_sweep import ITEMS, SWEEP, TINY

from vsr_lightning.__main__ import main
from vsr_lightning.evaluation import results, videos
from vsr_lightning.evaluation.inventory import take_inventory
from vsr_lightning.inference.lit_vsr import LitVSR

BATCH = 3
FIRST_LOOKS = [(0, 0, 1), (0, 0, 3)]  # (video, noise, frames) of the items whose clips are kept
TABLES = ("results.csv", "summary.csv", "means.csv")


class FinishedSweep:
    """A run folder, and the command that made it."""

    def __init__(self, arguments: list[str], folder: Path, capfd, restored: Counter) -> None:
        self.arguments, self.folder, self._capfd, self._restored = arguments, folder, capfd, restored
        self.repeat()
        self.tables = {name: (folder / name).read_bytes() for name in TABLES}
        self.clips = videos.read_clips(folder)

    def repeat(self, *options: str) -> tuple[list[tuple], str]:
        """Type the command again: (video, noise, frames) of what it restored, and what it said on stderr."""
        self._restored.clear()
        self._capfd.readouterr()
        assert main([*self.arguments, *options]) == 0
        return sorted(self._restored.elements()), self._capfd.readouterr().err

    def batch_file(self) -> Path:
        """The restorations of a whole batch."""
        whole = (path for path in videos.restored_files(self.folder) if len(videos.read_restored(path)) == BATCH)
        return next(whole)

    def assert_as_before(self) -> None:
        assert {name: (self.folder / name).read_bytes() for name in TABLES} == self.tables
        clips = videos.read_clips(self.folder)
        assert [results.video_key(clip) for clip in clips] == [results.video_key(clip) for clip in self.clips]
        for clip, other in zip(clips, self.clips, strict=True):
            assert all(np.array_equal(clip[name], other[name]) for name in (*videos.CLIP_ARRAYS, "frames"))
        assert len(videos.load_restored(self.folder)) == ITEMS


@pytest.fixture
def finished(tiny_prior, tmp_path, capfd, monkeypatch):
    restored = Counter()
    predict_step = LitVSR.predict_step

    def spy(self, batch, batch_idx):
        frames = batch.mask.sum(dim=1).int().tolist()
        restored.update((video, noise, n) for (_, video, noise), n in zip(batch.keys, frames, strict=True))
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(LitVSR, "predict_step", spy)
    runs_dir = tmp_path / "runs"
    arguments = ["sweep", str(SWEEP), *TINY, "full=true", f"prior={tiny_prior}", f"runs_dir={runs_dir}"]
    return FinishedSweep(arguments, runs_dir / "frame_count", capfd, restored)


@pytest.mark.parametrize("damage", DAMAGES)
def test_restorations_that_no_mean_has_are_made_again(finished, damage):
    path = finished.batch_file()
    lost = {key[-2:] for key in videos.read_restored(path)}
    damage(path)
    (finished.folder / "means.csv").unlink()  # as if killed before the end
    restored, said = finished.repeat()
    assert len(restored) == BATCH
    assert {item[:2] for item in restored} == lost
    assert said.startswith(f"{path}: cannot be read (")
    assert said.count("\n") == 1
    finished.assert_as_before()
    assert finished.repeat() == ([], "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_restorations_that_the_means_have_are_needed_no_more(finished, damage):
    path = finished.batch_file()
    damage(path)
    restored, said = finished.repeat()
    assert restored == []
    assert said.startswith(f"{path}: cannot be read (")
    assert {name: (finished.folder / name).read_bytes() for name in TABLES} == finished.tables
    for file in videos.restored_files(finished.folder):
        file.unlink()
    assert finished.repeat() == ([], "")
    assert {name: (finished.folder / name).read_bytes() for name in TABLES} == finished.tables


@pytest.mark.parametrize("damage", DAMAGES)
def test_clips_are_gathered_again_and_made_again_where_nothing_has_them(finished, damage):
    ranks, gathered = finished.folder / "rows" / "clips-rank-0.h5", finished.folder / "clips.h5"
    restorations = {path: path.read_bytes() for path in videos.restored_files(finished.folder)}

    damage(gathered)
    restored, said = finished.repeat()
    assert (restored, said.startswith(f"{gathered}: cannot be read (")) == ([], True)
    finished.assert_as_before()

    damage(ranks)
    restored, said = finished.repeat()
    assert (restored, said.startswith(f"{ranks}: cannot be read (")) == ([], True)
    finished.assert_as_before()

    gathered.unlink()
    restored, said = finished.repeat()
    assert (restored, said.startswith(f"{ranks}: cannot be read (")) == (FIRST_LOOKS, True)
    finished.assert_as_before()
    assert {path: path.read_bytes() for path in videos.restored_files(finished.folder)} == restorations, "no rivals"
    assert finished.repeat() == ([], "")


def test_clips_of_a_rank_that_is_no_more(finished):
    """Nobody writes its file again: what is damaged there stays, and may be deleted, as the notice says."""
    ranks, gathered = finished.folder / "rows" / "clips-rank-0.h5", finished.folder / "clips.h5"
    other = ranks.rename(ranks.with_name("clips-rank-7.h5"))
    gathered.unlink()
    truncate(other)
    for expected in (FIRST_LOOKS, []):
        restored, said = finished.repeat()
        assert restored == expected
        assert said.startswith(f"{other}: cannot be read (")
        assert said.endswith("; it may be deleted\n")
        finished.assert_as_before()
    other.unlink()
    assert finished.repeat() == ([], "")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_made_anew(finished, name, damage):
    damage(finished.folder / name)
    restored, said = finished.repeat()
    assert restored == []
    assert said.startswith(f"{finished.folder / name}: cannot be read (" if name == "means.csv" else "")
    finished.assert_as_before()


@pytest.mark.parametrize("name", ["results.csv", "means.csv", "clips.h5"])
def test_figures_name_what_is_damaged_and_the_way_out_works(finished, name, capfd):
    figures = [f"vsr_lightning.figures.{module}.make_figures" for module in ("frame_count", "comparison")]
    command = ["figures", *finished.arguments[1:], f"figures=[{','.join(figures)}]"]
    truncate(finished.folder / name)
    assert main(command) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {finished.folder / name}: cannot be read (")
    assert "repeat the sweep's command" in line
    assert finished.repeat()[0] == []
    assert main(command) == 0
    finished.assert_as_before()


def test_everything_at_once_and_a_little_at_a_time(finished):
    for path in (*videos.restored_files(finished.folder), *videos.clip_files(finished.folder)):
        empty(path)
    empty(finished.folder / "means.csv")
    assert finished.repeat("--limit", "3")[0] == [(0, 0, 1), (0, 0, 3), (1, 0, 1)]
    rest = finished.repeat()[0]
    assert len(rest) == ITEMS - 3
    finished.assert_as_before()


def test_a_dry_run_names_what_is_damaged_and_counts_it_as_missing(finished, capfd):
    path = finished.batch_file()
    truncate(path)
    (finished.folder / "means.csv").unlink()
    before = snapshot(finished.folder)
    capfd.readouterr()
    assert main([*finished.arguments, "--dry-run"]) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[0].endswith(f"{ITEMS} restorations, {ITEMS - BATCH} done, {BATCH} missing")
    assert told[-1].startswith(f"{path}: cannot be read (BadZipFile); what only this file held counts as missing")
    assert snapshot(finished.folder) == before


def test_an_item_restored_again_keeps_its_first_row(finished):
    """On a GPU another batch gives another restoration: what was measured stands, whichever rank comes first."""
    rows = finished.folder / "rows" / "rank-0.jsonl"
    rows.rename(rows.with_name("rank-1.jsonl"))
    empty(finished.batch_file())
    (finished.folder / "means.csv").unlink()
    assert len(finished.repeat()[0]) == BATCH
    again = rows.read_text().replace('"psnr_first": ', '"psnr_first": 9')  # as if it had come out otherwise
    assert again.count("restored again") == BATCH
    rows.write_text(again)
    assert finished.repeat()[0] == []
    finished.assert_as_before()


def test_a_restoration_without_a_row_is_made_again_with_it(finished):
    """A kill can fall between the two."""
    path = finished.folder / "rows" / "rank-0.jsonl"
    *others, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(others))
    held = take_inventory(finished.folder)
    assert (len(held.measured), len(held.restored), held.damaged) == (ITEMS - 1, ITEMS - 1, [])
    assert len(finished.repeat()[0]) == 1
    finished_rows = path.read_text().splitlines(keepends=True)
    assert len(finished_rows) == ITEMS
    assert '"status": "ok"' in finished_rows[-1]


def test_an_empty_folder_holds_nothing(tmp_path):
    held = take_inventory(tmp_path / "nowhere")
    assert (held.measured, held.restored, held.samples, held.clips, held.damaged) == (set(), set(), {}, set(), [])
