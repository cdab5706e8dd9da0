"""What the training of both networks shares: AdamW with warm-up and decay, and noise that a resumed run repeats."""

from typing import Any

import lightning as L
import numpy as np
import torch

from vsr_lightning.config import Training


def configure_adamw(module: L.LightningModule, training: Training) -> Any:
    """AdamW; linear warm-up, constant, linear decay to zero over the last `decay_steps`. Vectors do not decay."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = training.betas
    optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=(beta1, beta2), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, training))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def clip_and_log_gradients(module: L.LightningModule, max_norm: float | None) -> None:
    """Clip by global norm, and log the norm before. Lightning's own clipping refuses a fused optimiser under bf16."""
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm or torch.inf)
    module.log("train/grad_norm", norm)


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
