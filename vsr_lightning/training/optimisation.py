"""What the training of both networks shares: the optimiser, its learning rate, and noise that a resumed run repeats."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from vsr_lightning.experiment import Training
from vsr_lightning.training.muon import MuonWithAdamW, block_matrices


class LitNetwork(L.LightningModule):
    """The base of both stages: an optimiser with warm-up and decay, and clipped gradients whose norm is logged."""

    def __init__(self, training: Training, seed: int) -> None:
        super().__init__()
        self.training_options, self.seed = training, seed
        self.step_metrics: dict[str, Tensor | float] = {}  # what `LossLog` has not logged yet

    def keep_for_log(self, values: Callable[[], dict[str, Tensor]]) -> None:
        """Leave what `values` gives to `LossLog`, at the steps that it logs.

        Not by `self.log`: Lightning would keep account of each value at every step, and log the last ones once more,
        as those of another step, when a training is stopped.
        """
        if (self.global_step + 1) % self.training_options.log_every == 0:
            with torch.no_grad():
                self.step_metrics |= {name: value.detach() for name, value in values().items()}

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self, self.training_options)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        norm = clip_gradients(self, gradient_clip_val)
        self.keep_for_log(lambda: {"train/grad_norm": norm})


def configure_optimizer(module: L.LightningModule, training: Training) -> Any:
    """Linear warm-up, constant, linear decay to zero over the last `decay_steps`. Vectors do not decay."""
    matrices = block_matrices(module) if training.optimizer == "muon" else []
    chosen = {id(matrix) for matrix in matrices}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = training.betas
    optimizer: Optimizer
    if matrices:
        optimizer = MuonWithAdamW(matrices, groups, training.lr, (beta1, beta2), training.weight_decay)
    else:
        optimizer = AdamW(groups, lr=training.lr, betas=(beta1, beta2), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, training))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def clip_gradients(module: L.LightningModule, max_norm: float | None) -> Tensor:
    """Clip by global norm; returns the norm before. Lightning's own clipping refuses a fused optimiser under bf16."""
    return torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm or torch.inf)


def lr_factor(step: int, training: Training) -> float:
    """The learning rate at a step, as a share of `training.lr`."""
    warm_up = min(1.0, (step + 1) / max(1, training.warmup_steps))
    decay = min(1.0, (training.max_steps - step) / max(1, training.decay_steps))
    return min(warm_up, max(decay, 0.0))


def step_generator(module: L.LightningModule, seed: int) -> torch.Generator:
    """A generator that is a function of (seed, global step, rank): the whole state of the noise, so resume is exact."""
    key = [seed, module.global_step, module.global_rank]
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator(module.device).manual_seed(seed)
