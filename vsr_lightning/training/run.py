"""The `train` and `export` commands: an experiment to a trained network, and a checkpoint to a prior's folder."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vsr_lightning import processes, provenance, runs, wandb_logger
from vsr_lightning.data.clips import ClipDataModule, stack
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Experiment
from vsr_lightning.models.prior import fingerprint, load_prior, load_vae, read_card, save_prior
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.models.vae import VAE, compile_convolutions
from vsr_lightning.models.video_dit import VideoDiT
from vsr_lightning.targets import build
from vsr_lightning.training.callbacks import EMA, LastCheckpoint, LossLog, Pictures, Progress, Throughput
from vsr_lightning.training.lit_dit import CHECK_START, LitDiT
from vsr_lightning.training.lit_vae import LitVAE, measure_latents

COMPILE_FROM_STEPS = 500  # compilation takes the time of some hundred steps
LATENT_VIDEOS = 512  # that the latents' mean and standard deviation are measured on


def train(experiment: Experiment) -> Path:
    """Train the network of `training.stage`, resuming `checkpoints/last.ckpt` if there is one.

    When all steps are done, the run's `prior/` folder holds the result. Returns the run's folder.
    """
    processes.end_with_parent()
    processes.check_devices(experiment)
    datamodule = make_datamodule(experiment)
    module = make_module(experiment)
    check_clips(datamodule, module, experiment)
    folder = runs.open_run(experiment, "train", input_fingerprints(experiment))
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        held = check_checkpoint(checkpoint, experiment)
        if _is_finished(experiment, held["global_step"], _seconds(held)):
            if processes.rank() == 0:
                export(experiment, folder / "prior", datamodule)
            return folder
    if experiment.trainer.compile == "always" or (
        experiment.trainer.compile == "auto"
        and processes.uses_gpu(experiment)
        and experiment.training.max_steps >= COMPILE_FROM_STEPS
    ):
        compile_networks(module)
    trainer = make_trainer(experiment, folder, checkpoint)
    precision = "high" if processes.uses_gpu(experiment) else "highest"  # TF32 where autocast has float32
    processes.announce_to_children(experiment)
    with processes.matmul_precision(precision), processes.interruptible():
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint if checkpoint.exists() else None)
    if trainer.is_global_zero:
        (throughput,) = (callback for callback in trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
        if _is_finished(experiment, trainer.global_step, throughput.seconds):
            export(experiment, folder / "prior", datamodule)
        else:
            print(f"{folder}: stopped at step {trainer.global_step}; the same command goes on from there")
        wandb_logger.close_logger(trainer.logger)  # type: ignore[arg-type]
    trainer.strategy.barrier()
    return folder


def export(experiment: Experiment, target: Path, datamodule: ClipDataModule | None = None) -> Path:
    """Write the prior's folder `target` from the run's last checkpoint (averaged weights), with its card.

    Raises UserError where `target` holds the prior of another run.
    """
    checkpoint_path = experiment.folder / "checkpoints" / "last.ckpt"
    if not checkpoint_path.exists():
        raise UserError(f"{checkpoint_path}: no such file; train {experiment.name} first")
    checkpoint = check_checkpoint(checkpoint_path, experiment)
    finished = _is_finished(experiment, checkpoint["global_step"], _seconds(checkpoint))
    if not (finished or experiment.unfinished):
        raise UserError(
            f"{checkpoint_path}: at step {checkpoint['global_step']} of {experiment.training.max_steps}; "
            "go on with the training, or export all the same with unfinished=true"
        )
    _check_takes_no_place(target, experiment)
    module = make_module(experiment)
    module.load_state_dict(checkpoint["state_dict"])
    history = _history(experiment) + [_training_record(experiment, checkpoint)]
    if isinstance(module, LitVAE):
        datamodule = datamodule or make_datamodule(experiment)
        clips = datamodule.train_clips()
        count = LATENT_VIDEOS if getattr(clips, "endless", False) else min(LATENT_VIDEOS, len(clips))  # type: ignore[arg-type]
        batches = [stack(clips, range(start, min(start + 32, count))) for start in range(0, count, 32)]
        measure_latents(module.vae, batches)
        save_prior(target, {"vae": experiment.vae, "training": history}, module.vae)
    else:
        card = {"vae": _vae_section(experiment), "dit": experiment.dit, "schedule": experiment.schedule}
        save_prior(target, {**card, "training": history}, module.prior.vae, module.dit)
    print(f"{target}: exported {experiment.training.stage} after {checkpoint['global_step']} steps")
    return target


def _check_takes_no_place(target: Path, experiment: Experiment) -> None:
    """Training's own `prior/` is free to be written again, as is what no card says the origin of."""
    if target == experiment.folder / "prior":
        return
    try:
        records = read_card(target).get("training") or [{}]
    except UserError:  # none, or damaged: the way out is to export again
        return
    if records[-1].get("run") != experiment.name:
        raise UserError(
            f"{target}: holds the prior of another run than {experiment.name}; name another folder, as in prior=…, or "
            "delete its card.yaml to replace it"
        )


def make_datamodule(experiment: Experiment) -> ClipDataModule:
    return build({"seed": experiment.seed, **experiment.data}, "data", ClipDataModule)


def make_module(experiment: Experiment) -> LitVAE | LitDiT:
    """The LightningModule of the stage, its network fresh or from the prior that `init` names."""
    torch.manual_seed(experiment.seed)  # the initial weights
    training = experiment.training
    for key, folder in (("init", experiment.init), ("training.vae_prior", training.vae_prior)):
        if folder and not (Path(folder) / "card.yaml").exists():
            raise UserError(f"{key}: {folder} holds no prior; train it first, or name the folder of one that is there")
    if training.stage == "vae":
        if experiment.init:
            _check_same_network("vae", experiment)
            vae = load_vae(experiment.init).requires_grad_(True).train()
        else:
            vae = build(experiment.vae, "vae", VAE)
        return LitVAE(vae, training, experiment.seed)
    source = training.vae_prior or experiment.init
    if not source:
        raise UserError("training.vae_prior: name the folder of the prior that holds the trained VAE")
    vae = load_vae(source)
    if experiment.init:
        prior = load_prior(experiment.init)
        _check_same_network("dit", experiment)
        dit = prior.dit.requires_grad_(True).train()
    else:
        dit = build(experiment.dit, "dit", VideoDiT)
    return LitDiT(dit, vae, build(experiment.schedule, "schedule", LinearSchedule), training, experiment.seed)


def check_clips(datamodule: ClipDataModule, module: LitVAE | LitDiT, experiment: Experiment) -> None:
    """Raise UserError, before anything is written, unless clips can be had and suit the network."""
    shape = tuple(datamodule.validation_clips(1).shape[1:])
    if isinstance(module, LitVAE):
        if shape[1] != module.vae.in_channels:
            raise UserError(f"vae.in_channels: {module.vae.in_channels}, but the data has {shape[1]} channels")
        return
    if shape != module.prior.video_shape:
        raise UserError(f"dit: makes videos {module.prior.video_shape} (F, C, H, W), but the data has {shape}")
    most, steps = int(CHECK_START * module.prior.schedule.num_steps), experiment.training.check_steps
    if steps > most:
        raise UserError(f"training.check_steps: {steps} is more than {most}, the timesteps that the check goes through")


def input_fingerprints(experiment: Experiment) -> dict[str, str]:
    """What training depends on beside its configuration: the clips, the prior to start from, the VAE under a DiT."""
    inputs = {"init": fingerprint(experiment.init)} if experiment.init else {}
    if store := make_datamodule(experiment).fingerprint("train"):
        inputs["store"] = store
    if experiment.training.stage == "dit":
        inputs["vae"] = fingerprint(experiment.training.vae_prior or experiment.init, "vae")
        if experiment.init and inputs["vae"] != fingerprint(experiment.init, "vae"):
            raise UserError(
                f"training.vae_prior: {experiment.training.vae_prior} has another VAE than the prior to start from; "
                f"set it to {experiment.init}"
            )
    return inputs


def checkpoint_identity(experiment: Experiment) -> dict[str, Any]:
    return {**runs.identity(experiment, "train"), "inputs": input_fingerprints(experiment)}


def compile_networks(module: LitVAE | LitDiT) -> None:
    """In place, so that state-dict keys stay. The VAE's encoder is compiled in both stages: it sees every batch."""
    if isinstance(module, LitVAE):
        compile_convolutions(module.vae.encoder)
        compile_convolutions(module.vae.decoder)
    else:
        compile_convolutions(module.vae.encoder)
        compile_for_training(module.dit)


def compile_for_training(dit: VideoDiT) -> None:
    """In place. Backward, what is cheaper to compute twice from bf16 than to keep in float32 is not kept."""
    dit.compile(options={"realize_reads_threshold": 6, "realize_opcount_threshold": 64})


def make_trainer(experiment: Experiment, folder: Path, checkpoint: Path) -> L.Trainer:
    options, training = experiment.trainer, experiment.training
    dataset = experiment.data["target"].rpartition(".")[2]
    logger = wandb_logger.make_logger(experiment, folder, f"train-{training.stage}", tags=[dataset])
    callbacks: list[L.Callback] = [
        EMA(training.ema_decay),
        Throughput(training.log_every, training.max_seconds),
        LossLog(training.log_every),
        Pictures(),
        LastCheckpoint(checkpoint, training.save_every, checkpoint_identity(experiment), options.max_minutes),
    ]
    if options.progress:
        callbacks.append(Progress(training.log_every))
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=processes.strategy(experiment),
        precision=processes.precision(experiment, "train"),
        max_steps=training.max_steps,
        max_epochs=-1,
        val_check_interval=training.val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=training.grad_clip,
        log_every_n_steps=training.log_every,
        logger=logger or False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=options.progress,
        use_distributed_sampler=False,  # the DataModule shards by itself, and resumes exactly
        inference_mode=False,  # the posterior check takes gradients
        deterministic=options.deterministic,
        benchmark=not options.deterministic,
    )


def check_checkpoint(path: Path, experiment: Experiment) -> dict[str, Any]:
    """The checkpoint, if its networks are this experiment's. Raises UserError."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint["state_dict"]
    except Exception as error:  # torch.load raises whatever the bytes make it raise
        raise UserError(f"{path}: cannot be read as a checkpoint ({error.__class__.__name__}); delete it") from None
    expected = make_module(experiment).state_dict()
    if different := runs.differences(checkpoint.get("experiment"), checkpoint_identity(experiment)):
        raise UserError(
            f"{path}: is a checkpoint of another experiment ({', '.join(different[:3])}); choose a new name="
        )
    for name in [*expected, *state]:
        if name not in state or name not in expected or state[name].shape != expected[name].shape:
            raise UserError(
                f"{path}: is a checkpoint of another experiment ('{name}' differs); choose a new name= or delete it"
            )
    return checkpoint


def _is_finished(experiment: Experiment, steps: int, seconds: float) -> bool:
    """Whether a training has spent its steps or its seconds."""
    training = experiment.training
    return steps >= training.max_steps or 0 < training.max_seconds <= seconds


def _seconds(checkpoint: dict[str, Any]) -> float:
    """Seconds of training, over all parts of the run."""
    return checkpoint["callbacks"].get("Throughput", {}).get("seconds", 0.0)


def _training_record(experiment: Experiment, checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": experiment.name,
        "stage": experiment.training.stage,
        "data": {key: value for key, value in experiment.data.items() if key not in ("dir", "num_workers")},
        "seed": experiment.seed,
        "init": experiment.init,
        "steps": checkpoint["global_step"],
        "seconds": round(_seconds(checkpoint), 1),
        "devices": checkpoint.get("devices", 1),
        "metrics": checkpoint.get("metrics", {}),
        "training": dataclasses.asdict(experiment.training),
        "exported": provenance.now(),
        **provenance.describe_machine(),
    }


def _history(experiment: Experiment) -> list[dict[str, Any]]:
    """Training records of the prior this one started from, or of the VAE it is built on."""
    if experiment.init:
        return read_card(experiment.init).get("training", [])
    if experiment.training.stage == "dit":
        return read_card(experiment.training.vae_prior).get("training", [])
    return []


def _vae_section(experiment: Experiment) -> dict[str, Any]:
    return read_card(experiment.training.vae_prior or experiment.init)["vae"]


def _check_same_network(part: str, experiment: Experiment) -> None:
    """The card that `export` writes takes the network from the experiment, so `init` must agree with it."""
    if getattr(experiment, part) != read_card(experiment.init)[part]:
        raise UserError(
            f"init: the network in {experiment.init} is not the one in section '{part}'; "
            "make them equal, or leave init out"
        )
