"""A sweep in several goes: killed, out of time, with failures. The same command finishes what is missing."""

import pytest
import torch
from tiny_sweep import ITEMS, assert_same_rows, experiment, rows_by_item, written_rows

from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.restoring import UntilTimeIsUp
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.inference.lit_vsr import LitVSR


def test_a_killed_sweep_is_finished_by_the_same_command(tiny_prior, tmp_path, monkeypatch, restored_sizes):
    predict_step = LitVSR.predict_step

    def die(self, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("killed")
        return predict_step(self, batch, batch_idx)

    killed = experiment(tiny_prior, tmp_path, "name=killed")
    with monkeypatch.context() as patch:
        patch.setattr(LitVSR, "predict_step", die)
        with pytest.raises(RuntimeError, match="killed"):
            sweep(killed)
    (path,) = (tmp_path / "killed" / "rows").glob("*.jsonl")
    path.write_text(path.read_text() + '{"video": 1, "noi')  # a torn last line
    assert restored_sizes == [3]

    sweep(killed)
    assert sum(restored_sizes) == ITEMS == len(written_rows(tmp_path / "killed"))
    straight = sweep(experiment(tiny_prior, tmp_path, "name=straight"))
    assert_same_rows(rows_by_item(tmp_path / "killed"), rows_by_item(straight))


def test_a_sweep_out_of_time_is_finished_by_the_same_command(tiny_prior, tmp_path, capsys, restored_sizes):
    folder = sweep(experiment(tiny_prior, tmp_path, "trainer.max_minutes=1e-9"))
    assert restored_sizes == [3]
    assert f"3 of {ITEMS} restorations; the same command goes on" in capsys.readouterr().out
    assert len(results.read_table(folder / "results.csv")) == 3
    sweep(experiment(tiny_prior, tmp_path))
    assert f"{ITEMS} of {ITEMS} restorations\n" in capsys.readouterr().out
    assert len(rows_by_item(folder)) == ITEMS == sum(restored_sizes)


def test_the_time_limit_lets_one_batch_through():
    assert list(UntilTimeIsUp(3, max_minutes=0)) == [0, 1, 2]
    assert list(UntilTimeIsUp(3, max_minutes=1e-9)) == [0]
    assert list(UntilTimeIsUp(0, max_minutes=1e-9)) == []


def test_failed_items_are_kept_marked_and_tried_again(tiny_prior, tmp_path, restored_sizes, capsys):
    # The square of so much noise overflows float32.
    overrides = ["grid.sigma_y=[0.02,3e18]", "grid.num_frames=[2]", "grid.noises=1", "trainer.batch_size=4"]
    folder = sweep(experiment(tiny_prior, tmp_path, *overrides))
    first, header, *_ = capsys.readouterr().out.splitlines()
    failed = "2 failed (non-finite at step 0 with zeta 0.5)"
    assert first == f"{folder}: 2 of 4 restorations, {failed}; the same command tries them again"
    assert header.split()[:3] == ["sigma_y", "n", "failed"]
    rows = results.read_table(folder / "results.csv")
    assert [(row["sigma_y"], row["status"]) for row in rows[:2]] == [(0.02, "ok")] * 2
    assert len(rows) == 4
    assert [row["status"] for row in rows[2:]] == ["non-finite at step 0 with zeta 0.5"] * 2
    assert {(line["n"], line["failed"]) for line in results.read_table(folder / "summary.csv")} == {(2, 0), (0, 2)}
    assert len(results.read_table(folder / "means.csv")) == 2
    sweep(experiment(tiny_prior, tmp_path, *overrides))
    assert restored_sizes == [4, 2]  # only the failed ones
    assert len(results.read_table(folder / "results.csv")) == 4


def test_a_sweep_in_which_everything_failed_says_so(tiny_prior, tmp_path, capsys):
    overrides = ["grid.sigma_y=[3e18]", "grid.noises=1"]
    sweep(experiment(tiny_prior, tmp_path, *overrides, "trainer.max_minutes=1e-9"))
    failed = "failed (non-finite at step 0 with zeta 0.5)"
    printed = capsys.readouterr().out
    assert f": 0 of 4 restorations, 3 {failed}; the same command goes on and tries them again\n" in printed
    sweep(experiment(tiny_prior, tmp_path, *overrides))
    printed = capsys.readouterr().out
    assert f": 0 of 4 restorations, 4 {failed}; the same command tries them again\n" in printed


def test_a_later_success_replaces_a_failure(tiny_prior, tmp_path, monkeypatch):
    predict_step = LitVSR.predict_step

    def fail_last(self, batch, batch_idx):
        restoration = predict_step(self, batch, batch_idx)
        restoration.x_hat[-1] = torch.nan
        restoration.status[-1] = "non-finite at the last step with zeta 0.5"
        return restoration

    command = experiment(tiny_prior, tmp_path, "name=again", "grid.num_frames=[2]")
    with monkeypatch.context() as patch:
        patch.setattr(LitVSR, "predict_step", fail_last)
        folder = sweep(command)
    failed = [row["status"] for row in results.read_table(folder / "results.csv") if row["status"] != "ok"]
    assert len(failed) == 2
    sweep(command)
    straight = sweep(experiment(tiny_prior, tmp_path, "name=straight", "grid.num_frames=[2]"))
    assert_same_rows(rows_by_item(folder), rows_by_item(straight))
    for found, expected in zip(*(results.read_table(f / "means.csv") for f in (folder, straight)), strict=True):
        assert found["n_samples"] == expected["n_samples"] == 2
        assert found["psnr_first_of_mean"] == pytest.approx(expected["psnr_first_of_mean"], abs=0.05)
