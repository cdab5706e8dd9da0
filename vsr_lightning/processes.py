"""The processes of a run, and the devices that they compute on."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Experiment

PARENT = "VSR_PARENT"  # environment variable: the process that started this one as a further rank


def uses_gpu(experiment: Experiment) -> bool:
    return experiment.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def precision(experiment: Experiment, kind: Literal["train", "sweep"]) -> Any:
    """Lightning's name of the precision of a run of that kind."""
    if experiment.trainer.precision != "auto":
        return experiment.trainer.precision
    in_bf16 = uses_gpu(experiment) or (kind == "sweep" and multiplies_bf16())
    return "bf16-mixed" if in_bf16 else "32-true"


def multiplies_bf16() -> bool:
    """Whether this is an x86 CPU with instructions for bf16; without, it is slower than float32. ARM was not tried."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Multiply float32 matrices as `torch.set_float32_matmul_precision(name)` says; then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_devices(experiment: Experiment, launched: bool = True) -> None:
    """Raise UserError unless the devices, and if `launched` the processes, are there that the experiment counts on."""
    accelerator, available = experiment.trainer.accelerator, torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator: '{accelerator}' asked for, no GPU here")
    if uses_gpu(experiment) and experiment.trainer.devices > available:
        raise UserError(f"trainer.devices: {experiment.trainer.devices} GPUs asked for, {available} here")
    if launched:
        _check_launcher(experiment)


def _check_launcher(experiment: Experiment) -> None:
    """The processes that torchrun or SLURM started must be those that the experiment counts on."""
    started, expected = os.environ.get("WORLD_SIZE"), world_size(experiment)
    if started and int(started) != expected:
        machines = int(started) // int(os.environ.get("LOCAL_WORLD_SIZE", started))
        raise UserError(
            f"trainer.devices, trainer.num_nodes: {expected} processes expected, {started} were started; set "
            f"trainer.devices={int(started) // machines} trainer.num_nodes={machines}"
        )
    if experiment.trainer.num_nodes > 1 and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise UserError("trainer.num_nodes: several machines need torchrun or srun, as in experiments/slurm.sbatch")


def strategy(experiment: Experiment) -> str:
    return "ddp" if world_size(experiment) > 1 else "auto"


def world_size(experiment: Experiment) -> int:
    """The number of processes, one a device, on all machines."""
    return experiment.trainer.devices * experiment.trainer.num_nodes


def rank() -> int:
    """This process's number among those of the run, also before a Trainer exists."""
    return getattr(rank_zero_only, "rank", None) or 0


def has_fellows(experiment: Experiment) -> bool:
    """Whether other processes of the run are at work already: a launcher started them, or the first one's Trainer."""
    return world_size(experiment) > 1 and _is_launched()


def _is_launched() -> bool:
    return any(name in os.environ for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"))


def announce_to_children(experiment: Experiment) -> None:
    """Leave word of this process to those that its Trainer may start, for `end_with_parent`."""
    if world_size(experiment) > 1 and not _is_launched():
        os.environ[PARENT] = str(os.getpid())


def end_with_parent() -> None:
    """End this process, if a further rank, when the one that has started it is gone, a Trainer's or torchrun's.

    It would wait for the first rank for half an hour. A thread watches, as the main one may be waiting where no signal
    reaches it.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return
    parent = int(os.environ.get(PARENT, 0)) or os.getppid()  # the former is true even if that has died by now

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C out of a Trainer as KeyboardInterrupt: of itself it ends the process, without a word, with code 1."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
