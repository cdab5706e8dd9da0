"""The command line: what it prints, and one line on stderr with exit code 2 for every mistake of the user's."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from folders import snapshot

from vsr_lightning import runs, wandb_logger
from vsr_lightning.__main__ import COMMANDS, main
from vsr_lightning.config import load_config
from vsr_lightning.data import digits
from vsr_lightning.errors import NothingRestored, UserError
from vsr_lightning.targets import build

ROOT = Path(__file__).parents[1]
SWEEP_FRAMES = str(ROOT / "experiments/moving_mnist/sweep_frames.yaml")


@pytest.fixture
def experiment(tmp_path, tiny_prior, monkeypatch):
    """Path of a small sweep, which also trains a small VAE; runs go to `tmp_path/runs`."""
    monkeypatch.chdir(tmp_path)
    vae = yaml.safe_load((tiny_prior / "card.yaml").read_text())["vae"]
    content = {
        "include": [str(ROOT / "experiments" / name) for name in ("base.yaml", "sampler/dps.yaml")]
        + [str(ROOT / "experiments/degradation/gaussian.yaml")],
        "name": "tiny",
        "runs_dir": str(tmp_path / "runs"),
        "prior": str(tiny_prior),
        "data": {
            "target": "vsr_lightning.data.moving_mnist.MovingMNIST",
            "digits": "embedded",
            "batch_size": 2,
            "num_workers": 0,
            "test_videos": 2,
        },
        "vae": vae,
        "training": {"stage": "vae", "max_steps": 1},
        "sampler": {"steps": 2, "zeta": 1.0},
        "grid": {"videos": 1, "noises": 1, "num_frames": [1]},
        "trainer": {"accelerator": "cpu", "progress": False},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def refused(experiment, capfd):
    """Run a command that must fail on a mistake of the user's; returns its one line on stderr."""

    def refused(command: str, *overrides: str) -> str:
        before = snapshot(experiment.parent)
        capfd.readouterr()
        assert main([command, str(experiment), *overrides]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert snapshot(experiment.parent) == before, "something was half-written"
        return lines[0]

    return refused


# What it does


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


def test_a_sweep_ends_in_tables_and_is_not_repeated(experiment, capfd):
    assert main(["sweep", str(experiment)]) == 0
    folder = experiment.parent / "runs" / "tiny"
    rows = (folder / "rows/rank-0.jsonl").read_bytes()
    assert (folder / "summary.csv").exists()
    assert load_config(folder / "config.yaml") == load_config(experiment)
    assert main(["sweep", str(experiment)]) == 0
    assert (folder / "rows/rank-0.jsonl").read_bytes() == rows


@pytest.mark.parametrize("command", ["sweep", "evaluate"])
def test_a_sweep_in_which_everything_failed_is_an_error(experiment, capfd, command):
    """The square of so much noise overflows float32. What was written stands."""
    arguments = [command, str(experiment), "grid.sigma_y=[3e18]", "grid.noises=2"]
    assert main(arguments) == 1
    printed = capfd.readouterr()
    folder = experiment.parent / "runs" / "tiny"
    reason = "non-finite at step 0 with zeta 1"
    assert f"{folder}: 0 of 2 restorations, 2 failed ({reason}); " in printed.out
    assert printed.err.splitlines() == [
        f"error: {folder}: all restorations failed ({reason}); the same command tries them again"
    ]
    assert (folder / "summary.csv").exists()
    with pytest.raises(NothingRestored):
        main([*arguments, "--debug"])


def test_a_sweep_in_which_something_was_restored_is_none(experiment, capfd):
    assert main(["sweep", str(experiment), "grid.sigma_y=[0.02,3e18]"]) == 0
    printed = capfd.readouterr()
    assert "1 of 2 restorations, 1 failed" in printed.out
    assert "error" not in printed.err


def test_an_evaluation_is_a_sweep_that_either_command_finishes(experiment, capfd):
    """`evaluate` fills the folder, `sweep` finds nothing left to do, and the table is made by the figures."""
    options = ["grid.factor=[4,8]", "grid.kernel=[bicubic,gaussian]", "grid.sigma_h_per_factor=[0.5]"]
    options += ["figures=[vsr_lightning.figures.comparison.make_figures]"]
    assert main(["evaluate", str(experiment), *options, "trainer.max_minutes=1e-9"]) == 0
    assert "1 of 4 restorations; the same command goes on" in capfd.readouterr().out
    assert main(["evaluate", str(experiment), *options]) == 0
    folder = experiment.parent / "runs" / "tiny"
    assert "table1.md" in capfd.readouterr().out
    rows = (folder / "rows/rank-0.jsonl").read_bytes()
    table = (folder / "table1.csv").read_bytes()
    assert rows.count(b"\n") == 4
    assert main(["sweep", str(experiment), *options]) == 0
    assert (folder / "rows/rank-0.jsonl").read_bytes() == rows
    (folder / "table1.csv").unlink()
    assert main(["figures", str(experiment), *options]) == 0
    assert (folder / "table1.csv").read_bytes() == table


@pytest.mark.parametrize("overrides", [[], ["full=true", "grid.num_frames=[1,2]", "training.lr=1e-5"]])
def test_print_config_loads_back_to_the_same(overrides, tmp_path, capsys):
    assert main(["train", SWEEP_FRAMES, "--print-config", *overrides]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "printed.yaml") == load_config(SWEEP_FRAMES, overrides)


@pytest.mark.parametrize(
    ("gpu", "overrides", "name", "videos"),
    [
        (True, [], "frame_count", 8),
        (False, [], "frame_count_small", 2),
        (False, ["grid.videos=3"], "frame_count_small", 3),
        (False, ["full=true"], "frame_count", 8),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "evaluate", "figures"])
def test_a_sweep_without_a_gpu_takes_the_small_preset(command, gpu, overrides, name, videos, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert main([command, SWEEP_FRAMES, *overrides, "--print-config"]) == 0
    printed, notice = capsys.readouterr()
    config = yaml.safe_load(printed)
    assert (config["name"], config["grid"]["videos"]) == (name, videos)
    assert ("full=true" in notice) == (name == "frame_count_small")


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["gird.videos=1"], "'gird'; did you mean 'grid'?"),
        (["data.digts=mnist"], "data.digts"),
        (["grid.videos=many"], "grid.videos"),
        (["sampler.zeta=high"], "sampler.zeta"),
        (["sampler.target=os.system"], "sampler.target: 'os.system'"),
        (["degradation.factor=7"], "degradation.factor=7"),
        (["degradation.factor=0"], "degradation.factor=0"),
        (["degradation.kernel=box", "grid.sigma_h=[1,2]"], "grid.sigma_h: [1.0, 2.0] for kernels without a width"),
        (["grid.factor=[8,7]"], "grid.factor: must divide"),
        (["grid.factor=[8,0]"], "grid.factor: must be"),
        (["grid.kernel=[gaussian,bicubical]"], "grid.kernel: unknown"),
        (["grid.keep_videos=-1"], "grid.keep_videos: -1"),
        (["grid.num_frames=[0]"], "grid.num_frames: 0"),
        (["grid.num_frames=[1,11]"], "grid.num_frames: 11"),
        (["grid.order=[backwards]"], "grid.order: 'backwards'"),
        (["grid.sigma_h=[-1]"], "grid.sigma_h"),
        (["grid.sigma_y=[-0.1]"], "grid.sigma_y"),
        (["grid.videos=3"], "grid.videos: 3"),
        (["sampler.steps=0"], "steps: 0"),
        (["sampler.steps=1001"], "steps: 1001"),
        (["grid.steps=[10,1001]"], "steps: 1001"),
        (["data.num_frames=5"], "prior: "),
        (["data.batch_size=0"], "data.batch_size"),
        (["data.target=vsr_lightning.models.vae.VAE"], "data."),
        (["data.source=nowhere.npy"], "nowhere.npy"),
        (["data.digits=emnist"], "data.digits"),
        (["logging.mode=online"], "logging.mode"),
        (["prior="], "prior"),
        (["prior=''"], "prior: is empty; name a prior's folder"),
        (["grid.sigma_h=[1.0000001,1.0000002]"], "grid.sigma_h: 1.0000001 and 1.0000002 are one"),
        (["grid.sigma_h_per_factor=[0.50000001,0.5]"], "grid.sigma_h_per_factor: "),
        (["grid.zeta=[1,0.99999999]"], "grid.zeta: "),
        (["trainer.devices=0"], "trainer.devices"),
    ],
)
def test_a_sweep_refuses(refused, monkeypatch, tmp_path, overrides, named):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))  # no key in ~/.netrc
    monkeypatch.delenv("NETRC", raising=False)
    assert named in refused("sweep", *overrides)


@pytest.mark.parametrize("text", ["sede: 1", "seed: [", "include: gone.yaml"])
def test_mistakes_in_the_file(refused, experiment, text):
    experiment.write_text(text)
    assert ("gone.yaml" if "gone" in text else str(experiment)) in refused("sweep")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["trainer.accelerator=auto", "trainer.devices=2"], "trainer.devices: 2 GPUs asked for, 1 here"),
        (["trainer.accelerator=auto", "trainer.devices=1", "prior=gone"], "gone"),
    ],
)
def test_more_devices_than_there_are(refused, monkeypatch, overrides, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert named in refused("sweep", *overrides)


@pytest.mark.parametrize(
    ("environment", "overrides", "named"),
    [
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "0"}, [], "set trainer.devices=4 trainer.num_nodes=2"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ["trainer.devices=2"], "set trainer.devices=1 trainer.num_nodes=1"),
        ({}, ["trainer.num_nodes=2"], "trainer.num_nodes: several machines need torchrun or srun"),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_other_processes_than_were_started(refused, monkeypatch, command, environment, overrides, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert named in refused(command, *overrides)


def test_a_gpu_where_there_is_none(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "trainer.accelerator" in refused("sweep", "trainer.accelerator=gpu")


def edit_card(**changes):
    def edit(folder: Path) -> None:
        card = yaml.safe_load((folder / "card.yaml").read_text())
        (folder / "card.yaml").write_text(yaml.safe_dump(card | changes))

    return edit


def truncate(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (shutil.rmtree, "card.yaml: no such file"),
        (lambda folder: (folder / "card.yaml").unlink(), "card.yaml: no such file"),
        (lambda folder: (folder / "vae.safetensors").unlink(), "vae.safetensors: no such file"),
        (lambda folder: (folder / "dit.safetensors").unlink(), "dit.safetensors: no such file"),
        (truncate("vae.safetensors"), "vae.safetensors: is not a whole"),
        (truncate("dit.safetensors"), "dit.safetensors: is not a whole"),
        (lambda folder: (folder / "dit.safetensors").write_bytes(b""), "dit.safetensors: is not a whole"),
        (edit_card(format=99), "card.yaml: format 99 is unknown"),
        (lambda folder: (folder / "card.yaml").write_text("a: ["), "card.yaml: cannot be read"),
        (edit_card(vae={"target": "vsr_lightning.models.vae.VAE", "widths": [8, 8, 16]}), "vae.safetensors: "),
        (edit_card(vae={"target": "vsr_lightning.models.vae.VAE", "latent_channels": -1}), "card.yaml: vae"),
        (edit_card(dit={"target": "os.system"}), "card.yaml: dit.target: 'os.system'"),
        (edit_card(schedule={}), "card.yaml: schedule"),
    ],
)
def test_a_damaged_prior(refused, tiny_prior, damage, named):
    damage(tiny_prior)
    assert named in refused("sweep")


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A folder of MNIST files that are not the originals, and no network."""

    def no_network(*args, **kwargs):
        raise UserError("out of reach")

    monkeypatch.setattr(digits, "download", no_network)
    folder = tmp_path / "store" / "mnist"
    folder.mkdir(parents=True)
    for name in (digits.TRAIN_FILE, digits.TEST_FILE):
        (folder / name).write_bytes(gzip.compress(bytes(1000)))
    return folder


@pytest.mark.parametrize("command", ["data", "sweep", "train"])
def test_altered_digits(refused, mnist, command):
    line = refused(command, "data.digits=mnist", f"data.dir={mnist.parent}")
    assert str(mnist) in line
    assert "truncated or altered" in line


@pytest.mark.parametrize("command", ["data", "sweep", "train"])
def test_missing_digits(refused, mnist, command):
    (mnist / digits.TEST_FILE).unlink()
    line = refused(command, "data.digits=mnist", f"data.dir={mnist.parent}")
    assert digits.TEST_FILE in line
    assert "data.digits=embedded" in line


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_run_folder_of_another_configuration(refused, experiment, command):
    runs.open_run(load_config(experiment, ["seed=1"]), command, {})
    line = refused(command, "seed=2")
    assert "another seed" in line
    assert "name=tiny-2" in line


@pytest.mark.parametrize("content", ["- 1", "a: [", "grid: 3", "{samplers: {a: 3}, grid: {sampler: [a]}}"])
def test_a_run_folder_with_a_damaged_configuration(refused, experiment, content):
    (runs.open_run(load_config(experiment), "sweep", {}) / "config.yaml").write_text(content)
    assert "config.yaml" in refused("sweep")


@pytest.mark.parametrize("content", [b'{"kind": "sw', b"", b"\xff", b'["a list"]', b'{"inputs": []}'])
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_run_folder_with_a_damaged_record(refused, experiment, command, content):
    (runs.open_run(load_config(experiment), command, {}) / "meta.json").write_bytes(content)
    line = refused(command)
    assert "runs/tiny/meta.json: " in line
    assert "put it back from a copy" in line


@pytest.mark.parametrize(
    ("variable", "mode"),
    [("dryrun", "offline"), ("run", "online"), ("disabled", "disabled"), ("offline", "offline"), ("online", "online")],
)
def test_words_of_wandbs_variable(monkeypatch, variable, mode):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_logger.logging_mode(load_config(SWEEP_FRAMES)) == mode


def test_wandbs_variable_asks_for_what_cannot_be(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_MODE", "bogus")
    assert "WANDB_MODE: 'bogus' is none of online, offline, disabled" in refused("sweep")
    monkeypatch.setenv("WANDB_MODE", "run")  # W&B would ask for a key
    assert "needs a W&B API key" in refused("sweep")


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_checkpoint_of_another_experiment(experiment, capfd, command):
    folder = runs.open_run(load_config(experiment), "train", {})
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    other = build({"target": "vsr_lightning.models.vae.VAE", "widths": [8, 8, 16]}, "vae")
    torch.save({"state_dict": {f"vae.{key}": value for key, value in other.state_dict().items()}}, checkpoint)
    assert main([command, str(experiment)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert str(checkpoint) in line
    assert "another experiment" in line

    checkpoint.write_bytes(b"not a checkpoint")
    assert main([command, str(experiment)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{checkpoint}: cannot be read" in line


@pytest.mark.parametrize(
    ("command", "overrides", "named"),
    [
        ("export", [], "last.ckpt: no such file; train tiny first"),
        ("export", ["prior=''"], "prior: name the folder"),
        ("figures", [], "results.csv"),
        ("train", ["init=gone"], "gone"),
        ("train", ["training.stage=dit"], "training.vae_prior"),
        ("train", ["vae.widths=[8,8,9]"], "vae.widths"),
        ("train", ["vae.latent_channels=-1"], "vae"),
        ("train", ["vae.in_channels=3"], "vae.in_channels"),
        ("train", ["data.target=vsr_lightning.models.vae.VAE"], "data."),
    ],
)
def test_other_commands_refuse(refused, command, overrides, named):
    assert named in refused(command, *overrides)


def test_a_file_where_the_runs_should_go(experiment, refused):
    (experiment.parent / "runs").write_text("")
    assert str(experiment.parent / "runs") in refused("sweep")


@pytest.mark.parametrize("arguments", [["swep", "x.yaml"], ["sweep"], ["sweep", "x.yaml", "--fast"]])
def test_a_mistyped_command_is_one_line_too(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "vsr_lightning", "sweep", "nowhere.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.yaml: no such file; experiments are in experiments/\n"
    with_trace = subprocess.run([*command, "--debug"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Traceback" in with_trace.stderr
