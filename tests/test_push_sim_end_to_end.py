"""Robot pushing the whole way by the command line: simulate, train VAE and DiT, export, evaluate (`make test-sim`)."""

from pathlib import Path

import pytest

from vsr_lightning.__main__ import main
from vsr_lightning.evaluation import results

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "push_sim"
SIMULATION = [
    *("data.train_trajectories=3", "data.val_trajectories=1", "data.test_trajectories=2"),
    *("data.trajectory_frames=6", "data.num_frames=3", "data.processes=1"),
]
TRAIN = [
    *("data.batch_size=2", "data.num_workers=0", "data.val_videos=2", "training.max_steps=3"),
    *("training.val_every=3", "training.log_every=1", "training.warmup_steps=1", "training.decay_steps=1"),
    *("trainer.accelerator=cpu", "trainer.progress=false"),
]
VAE = ["vae.latent_channels=4", "vae.widths=[8,8,8]", "vae.encoder_blocks=[1,1,1]", "vae.decoder_blocks=[1,1,1]"]
DIT = [
    *("dit.latent_channels=4", "dit.num_frames=3", "dit.width=32", "dit.depth=1", "dit.heads=2"),
    "training.check_steps=2",
]
GRID = [
    *("sampler.steps=2", "sampler.restarts=[]", "grid.videos=2", "grid.noises=2", "grid.num_frames=[3]"),
    *("trainer.accelerator=cpu", "trainer.progress=false", "full=true"),
]


@pytest.mark.sim
def test_from_simulation_to_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(name: str, experiment: str, *overrides: str) -> int:
        return main([name, str(EXPERIMENTS / experiment), *SIMULATION, *overrides])

    assert command("data", "data.yaml") == 0
    stores = sorted(path.name for path in (tmp_path / "data").glob("*.h5"))
    assert stores == ["push_sim-test.h5", "push_sim-train.h5", "push_sim-val.h5"]
    assert command("train", "vae.yaml", *TRAIN, *VAE) == 0
    assert command("train", "dit.yaml", *TRAIN, *DIT) == 0
    assert command("export", "dit.yaml", *TRAIN, *DIT, "prior=shipped") == 0
    assert command("evaluate", "eval.yaml", *GRID, "prior=shipped") == 0

    folder = tmp_path / "runs" / "push_sim_eval"
    rows = results.read_table(folder / "results.csv")
    assert len(rows) == 2 * 2 * 4  # videos, noise instances, and the conditions
    assert {row["dataset"] for row in rows} == {"push_sim test"}
    assert {(row["factor"], row["kernel"]) for row in rows} == {(f, k) for f in (4, 8) for k in ("bicubic", "gaussian")}
    assert all(row["status"] == "ok" for row in rows)
    table = (folder / "table1.md").read_text()
    assert "push_sim" in table
    assert "27.44" in table  # the paper's, beside ours and marked as quoted
    for figure in ("fig6.png", "fig7.png"):
        assert (folder / figure).read_bytes()[:4] == b"\x89PNG"
    assert "16 of 16 restorations" in capsys.readouterr().out

    # Other clips under the same name: nothing of the run goes on with them.
    for store in stores:
        (tmp_path / "data" / store).unlink()
    assert command("data", "data.yaml", "data.simulation_seed=1") == 0
    capsys.readouterr()
    assert command("train", "vae.yaml", *TRAIN, *VAE, "data.simulation_seed=1") == 2
    assert "simulation_seed" in capsys.readouterr().err
    assert command("train", "vae.yaml", *TRAIN, *VAE) == 2  # the settings of the first, the clips of the second
    assert "is simulated, seed 1" in capsys.readouterr().err
