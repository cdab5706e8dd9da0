"""Training from YAML: exact resume, export with a card, starting from a prior, and what is refused."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch._inductor import config as inductor

from vsr_lightning.config import load_config
from vsr_lightning.data.clip_store import write_store
from vsr_lightning.data.clips import stack
from vsr_lightning.errors import UserError
from vsr_lightning.models.prior import load_prior, load_vae
from vsr_lightning.training import run
from vsr_lightning.training.run import export, make_datamodule, train

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "moving_mnist"
TINY = [
    *("data.digits=embedded", "data.embedded_share=0", "data.num_frames=2", "data.batch_size=2"),
    *("data.num_workers=0", "data.val_videos=2", "trainer.accelerator=cpu", "trainer.progress=false"),
    *("training.max_steps=6", "training.val_every=3", "training.save_every=2", "training.log_every=2"),
    *("training.warmup_steps=2", "training.decay_steps=2"),
]
TINY_VAE = ["vae.latent_channels=4", "vae.widths=[8,8,8]", "vae.encoder_blocks=[1,1,1]", "vae.decoder_blocks=[1,1,1]"]
TINY_DIT = [
    *("dit.latent_channels=4", "dit.num_frames=2", "dit.width=32", "dit.depth=1", "dit.heads=2"),
    *("training.check_videos=1", "training.check_steps=2"),
]


@pytest.fixture(autouse=True)
def few_latents(monkeypatch):
    monkeypatch.setattr(run, "LATENT_VIDEOS", 48)


def experiment(stage, runs_dir, *overrides):
    tiny = TINY + (TINY_VAE if stage == "vae" else TINY_DIT)
    return load_config(EXPERIMENTS / f"{stage}.yaml", [*tiny, f"runs_dir={runs_dir}", *overrides])


def checkpoint_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def card_of(folder):
    return yaml.safe_load((folder / "card.yaml").read_text())


def stop_after(monkeypatch, steps):
    """Make the training die like a killed process, after the callbacks of some step."""

    class Killed(Exception):
        pass

    def die(self, trainer, *_):
        if trainer.global_step == steps:
            raise Killed

    monkeypatch.setattr(L.LightningModule, "on_train_batch_end", lambda self, *_: die(self, self.trainer))
    return Killed


@pytest.mark.parametrize("num_videos", ["null", "7"], ids=["endless", "fixed"])
@pytest.mark.parametrize(("stage", "optimizer"), [("vae", "adamw"), ("dit", "adamw"), ("dit", "muon")])
def test_a_killed_run_goes_on_as_if_nothing_had_been(stage, optimizer, num_videos, tmp_path, tiny_prior, monkeypatch):
    overrides = [f"data.num_videos={num_videos}", f"training.optimizer={optimizer}"]
    overrides += [f"training.vae_prior={tiny_prior}"] if stage == "dit" else []
    straight = train(experiment(stage, tmp_path / "straight", *overrides))

    killed = experiment(stage, tmp_path / "killed", *overrides)
    with monkeypatch.context() as patch, pytest.raises(stop_after(patch, steps=5)):
        train(killed)  # the last checkpoint is of step 4, in the second pass over the seven clips
    assert not (tmp_path / "killed" / killed.name / "prior").exists()
    resumed = train(killed)

    expected, found = checkpoint_of(straight), checkpoint_of(resumed)
    assert expected["global_step"] == found["global_step"] == 6
    for state in ("state_dict", "current_model_state"):  # the average and the trained weights
        assert expected[state].keys() == found[state].keys()
        for name, value in expected[state].items():
            assert torch.equal(value, found[state][name]), (state, name)
    differ = [
        not torch.equal(expected["state_dict"][n], expected["current_model_state"][n]) for n in found["state_dict"]
    ]
    assert any(differ)
    assert found["metrics"] == expected["metrics"]
    assert found["callbacks"]["Throughput"]["seconds"] > 0


def test_time_limit_stops_with_a_checkpoint_and_the_same_command_goes_on(tmp_path, capsys):
    steps = "training.max_steps=12"
    folder = train(experiment("vae", tmp_path, steps, "trainer.max_minutes=1e-9"))
    assert checkpoint_of(folder)["global_step"] == 10
    assert "stopped at step 10; the same command goes on" in capsys.readouterr().out
    assert train(experiment("vae", tmp_path, steps)) == folder
    assert checkpoint_of(folder)["global_step"] == 12
    assert (folder / "prior" / "card.yaml").exists()


def test_deterministic_is_asked_of_torch_while_training(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        L.LightningModule, "on_train_batch_end", lambda *_: asked.append(torch.are_deterministic_algorithms_enabled())
    )
    for name, wanted in (("on", "true"), ("off", "false")):
        train(experiment("vae", tmp_path, f"name={name}", f"trainer.deterministic={wanted}"))
    assert asked == [True] * 6 + [False] * 6


def test_a_training_is_finished_when_its_seconds_are_spent(tmp_path):
    limited = experiment("vae", tmp_path, "training.max_steps=1000", "training.max_seconds=1e-9")
    folder = train(limited)
    assert checkpoint_of(folder)["global_step"] == 2  # the first does not count
    (record,) = card_of(folder / "prior")["training"]
    assert record["steps"] == 2
    assert "val/psnr" in record["metrics"]  # of the network that is exported
    (folder / "prior" / "card.yaml").unlink()
    train(limited)  # exports again, and trains no further
    assert checkpoint_of(folder)["global_step"] == 2
    assert (folder / "prior" / "card.yaml").exists()


def test_card_and_normalised_latents_of_a_vae(tmp_path):
    trained = experiment("vae", tmp_path, "seed=3", "data.num_videos=5")  # fewer than LATENT_VIDEOS
    folder = train(trained)
    card = card_of(folder / "prior")
    (record,) = card["training"]
    assert card["vae"] == trained.vae
    assert (record["stage"], record["steps"], record["seed"], record["devices"]) == ("vae", 6, 3, 1)
    assert (record["data"]["digits"], record["data"]["num_videos"]) == ("embedded", 5)
    assert record["training"]["max_steps"] == 6
    assert {"git", "hardware", "versions", "seconds"} <= record.keys()
    metrics = checkpoint_of(folder)["metrics"]
    assert record["metrics"] == metrics
    assert set(metrics) == {"val/psnr", "val/ssim", "val/latent_std"}

    vae = load_vae(folder / "prior")
    z = vae.encode(stack(make_datamodule(trained).train_clips(), range(5)))
    torch.testing.assert_close(z.mean(dim=(0, 1, 3, 4)), torch.zeros(4), atol=0.05, rtol=0)  # bf16 weights
    torch.testing.assert_close(z.std(dim=(0, 1, 3, 4)), torch.ones(4), atol=0.05, rtol=0)


def test_exported_prior_has_the_averaged_weights_and_the_history_of_its_vae(tmp_path):
    vae_folder = train(experiment("vae", tmp_path))
    trained = experiment("dit", tmp_path, f"training.vae_prior={vae_folder / 'prior'}")
    folder = train(trained)
    prior = load_prior(export(trained, tmp_path / "exported"))
    assert [record["stage"] for record in prior.card["training"]] == ["vae", "dit"]
    assert set(prior.card["training"][1]["metrics"]) >= {"val/loss", "val/loss_t0", "val/dps_psnr_first"}
    average = checkpoint_of(folder)["state_dict"]
    for name, value in prior.dit.state_dict().items():
        assert torch.equal(value, average[f"dit.{name}"].bfloat16().float()), name
    vae = load_vae(vae_folder / "prior")
    for name, value in prior.vae.state_dict().items():
        assert torch.equal(value, vae.state_dict()[name]), name


def test_export_takes_no_other_runs_place(tiny_prior, tmp_path):
    trained, target = experiment("vae", tmp_path), tmp_path / "exported"
    train(trained)
    assert export(trained, target) == export(trained, target)  # as after more steps
    other = experiment("vae", tmp_path, "name=other", "training.lr=0.5")
    train(other)
    before = {path: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(UserError, match=r"exported: holds the prior of another run than other; name another folder"):
        export(other, target)
    assert {path: path.read_bytes() for path in target.iterdir()} == before
    with pytest.raises(UserError, match="holds the prior of another run"):  # which is not on record, as of shipped ones
        export(other, tiny_prior)
    (target / "card.yaml").write_text("damaged: [")
    assert card_of(export(other, target))["training"][-1]["run"] == "other"


def test_init_starts_from_a_prior_and_keeps_its_history(tmp_path):
    vae = train(experiment("vae", tmp_path)) / "prior"
    first = train(experiment("dit", tmp_path, f"training.vae_prior={vae}")) / "prior"
    second = experiment("dit", tmp_path, f"init={first}", "training.vae_prior=''", "name=second", "training.lr=0")
    card = card_of(train(second) / "prior")
    assert [record["stage"] for record in card["training"]] == ["vae", "dit", "dit"]
    assert [record["init"] for record in card["training"]] == ["", "", str(first)]
    weights, start = load_prior(tmp_path / "second" / "prior").dit.state_dict(), load_prior(first).dit.state_dict()
    for name, value in weights.items():  # no step was taken at a learning rate of 0
        assert torch.equal(value, start[name]), name


def test_init_must_be_the_same_network(tmp_path):
    prior = train(experiment("vae", tmp_path)) / "prior"
    with pytest.raises(UserError, match=r"init: .* is not the one in section 'vae'"):
        train(experiment("vae", tmp_path, f"init={prior}", "name=other", "vae.widths=[16,8,8]"))
    assert not (tmp_path / "other").exists()


def test_checkpoint_of_another_experiment_is_refused(tmp_path):
    folder = train(experiment("vae", tmp_path))
    other = experiment("vae", tmp_path, "name=other", "vae.widths=[16,8,8]")
    target = tmp_path / "other" / "checkpoints" / "last.ckpt"
    target.parent.mkdir(parents=True)
    target.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    for command in (lambda: train(other), lambda: export(other, tmp_path / "exported")):
        with pytest.raises(UserError, match=r"last.ckpt: is a checkpoint of another experiment"):
            command()
    target.write_bytes(target.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last.ckpt: cannot be read as a checkpoint"):
        train(other)
    assert not (tmp_path / "exported").exists()


def test_a_run_of_another_configuration_is_refused(tmp_path):
    train(experiment("vae", tmp_path))
    with pytest.raises(UserError, match=r"another training.lr; start a new one with name=moving_mnist_vae-2"):
        train(experiment("vae", tmp_path, "training.lr=0.5"))


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file; train moving_mnist_vae first"):
        export(experiment("vae", tmp_path), tmp_path / "exported")
    with pytest.raises(UserError, match=r"training.vae_prior: nowhere holds no prior; train it first"):
        train(experiment("dit", tmp_path, "training.vae_prior=nowhere"))
    for stage in ("vae", "dit"):
        with pytest.raises(UserError, match=r"init: nowhere holds no prior"):
            train(experiment(stage, tmp_path, "training.vae_prior=''", "init=nowhere"))
    with pytest.raises(UserError, match="training.vae_prior: name the folder"):
        train(experiment("dit", tmp_path, "training.vae_prior=''"))
    assert not list(tmp_path.iterdir())


def test_other_clips_under_the_same_name_are_refused(tmp_path):
    """A training on a store that was made anew would go on with other clips, and its card would not know."""

    def make_store(seed):
        clips = np.random.default_rng(seed).integers(0, 256, (4, 30, 64, 64, 3), np.uint8)
        for split in ("train", "val"):
            path = tmp_path / f"bair-{split}.h5"
            write_store(path, [clips], name=path.stem, source="archive.tar, validation every 42", camera="image_aux1")

    overrides = [*TINY[3:], *TINY_VAE, "data.num_workers=0", f"data.dir={tmp_path}", f"runs_dir={tmp_path / 'runs'}"]
    bair = load_config(EXPERIMENTS.parent / "bair" / "vae.yaml", overrides)
    make_store(seed=0)
    train(bair)
    make_store(seed=1)
    with pytest.raises(UserError, match=r"another store; start a new one"):
        train(bair)
    with pytest.raises(UserError, match=r"another experiment \(inputs.store\)"):
        export(bair, tmp_path / "exported")


def test_a_dit_is_compiled_with_options_that_inductor_has(tiny_prior, tmp_path, monkeypatch):
    compiled = {}
    monkeypatch.setattr(nn.Module, "compile", lambda module, options, **_: compiled.update({module: options}))
    module = run.make_module(experiment("dit", tmp_path, f"training.vae_prior={tiny_prior}"))
    run.compile_networks(module)
    assert set(compiled) == {module.dit, module.vae.encoder}
    assert compiled[module.dit]["realize_reads_threshold"] > inductor.realize_reads_threshold
    for options in compiled.values():
        assert all(hasattr(inductor, name) for name in options)
