"""Muon for the matrices inside a transformer's blocks, AdamW for all else, as one optimiser.

Muon (Jordan et al. 2024) makes every update of a matrix orthogonal, so that no direction of it is learned much slower
than another. Embeddings, vectors and the last layer are not such maps from features to features, and stay with AdamW.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Two optimisers behind the interface of one: Lightning steps, schedules, saves and resumes it as any other.

    Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, Eq. 4), so that both take the same `lr`.

    Args:
        matrices: parameters of two dimensions, for Muon.
        others: parameter groups for AdamW.
        lr, betas, weight_decay: as AdamW's; `betas` is not for Muon, whose momentum is 0.95.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        muon = Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts: list[Optimizer] = [muon, AdamW(others, lr=lr, betas=betas, fused=True)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        """Let the groups be the parts' own: a learning rate that is set here is theirs."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def block_matrices(module: nn.Module) -> list[Tensor]:
    """Weights of the linear layers inside `blocks`, which map features to features."""
    return [
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "blocks" in name.split(".") and layer.weight.requires_grad
    ]
