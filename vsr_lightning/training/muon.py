"""Muon for the matrices inside a transformer's blocks, AdamW for all else, as one optimiser.

Muon (Jordan et al. 2024) makes every update of a matrix orthogonal, so that no direction of it is learned much slower
than another. Embeddings, vectors and the last layer are not such maps from features to features, and stay with AdamW.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


class BatchedMuon(Muon):
    """torch.optim.Muon with Nesterov's momentum, all matrices of one shape made orthogonal at once.

    The blocks of a transformer have few shapes of matrices and many of each: one by one, their small products cost more
    in launches than in arithmetic. Updates have the size of AdamW's (Liu et al. 2025, Eq. 4).
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        averages = [self._momentum_buffer(matrix) for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov's
        updates = orthogonalise(torch.stack(ahead), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        size = 0.2 * math.sqrt(max(matrices[0].shape))
        torch._foreach_add_(matrices, updates.to(matrices[0].dtype).unbind(), alpha=-lr * size)

    def _momentum_buffer(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonalise(
    matrices: Tensor, coefficients: tuple[float, float, float], iterations: int, eps: float = 1e-7
) -> Tensor:
    """Matrices (n, a, b) with their singular values drawn near one (Newton-Schulz, in bf16 as Jordan et al. 2024)."""
    first, second, third = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if is_tall else x


class MuonWithAdamW(Optimizer):
    """Two optimisers behind the interface of one: Lightning steps, schedules, saves and resumes it as any other.

    Muon's updates have the size of AdamW's, so that both take the same `lr`.

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
        muon = BatchedMuon(matrices, lr, weight_decay)
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
