"""Muon and AdamW as one: each with its parameters, orthogonal updates, one learning rate, a state that resumes."""

import copy

import pytest
import torch
from torch import nn

from vsr_lightning.models.video_dit import VideoDiT
from vsr_lightning.training.muon import BatchedMuon, MuonWithAdamW, block_matrices


def make(lr=0.01):
    torch.manual_seed(0)
    dit = VideoDiT(num_frames=2, latent_size=4, width=32, depth=2, heads=2)
    matrices = block_matrices(dit)
    chosen = {id(p) for p in matrices}
    others = [{"params": [p for p in dit.parameters() if id(p) not in chosen], "weight_decay": 0.0}]
    return dit, MuonWithAdamW(matrices, others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def train(dit, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        z = torch.randn(8, *dit.latent_shape, generator=generator)

        def closure(z=z):
            optimizer.zero_grad()
            loss = (dit(z, torch.zeros(8, dtype=torch.long)) - z).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def test_only_the_linear_layers_of_blocks_are_muons():
    dit, _ = make()
    names = {name for name, p in dit.named_parameters() if any(p is matrix for matrix in block_matrices(dit))}
    assert len(names) == 2 * 4  # qkv, out, and two of the MLP
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in names)
    assert not any("norm" in name or "table" in name for name in names)
    dit.blocks[0].requires_grad_(False)
    assert len(block_matrices(dit)) == 4


def test_batched_updates_are_torchs():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in [(8, 24), (24, 8), (8, 8), (8, 24), (24, 8)]]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = [
        BatchedMuon(ours, lr=0.1, weight_decay=0.01),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for matrix, other in zip(ours, theirs, strict=True):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            other.grad = matrix.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for matrix, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert moved > 0.1
        assert (matrix - other).norm() < 0.02 * moved  # bf16 products, in another order
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    assert states[0]["state"][0].keys() == states[1]["state"][0].keys()


def test_a_matrix_without_a_gradient_stays():
    still, moving = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = BatchedMuon([still, moving], lr=0.1)
    moving.grad = torch.eye(4)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moving, torch.ones(4, 4))


def test_updates_of_matrices_are_orthogonal():
    matrix = nn.Parameter(torch.zeros(6, 4))
    optimizer = MuonWithAdamW([matrix], [{"params": [nn.Parameter(torch.zeros(1))]}], 1.0, (0.9, 0.95), 0.0)
    matrix.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([9.0, 3, 1, 0.3])
    )
    optimizer.step()
    singular = torch.linalg.svdvals(matrix.detach())
    assert singular.max() / singular.min() < 2.5  # 30 times that in the gradient; Newton-Schulz ends near 1
    rms = matrix.detach().square().mean().sqrt().item()
    assert rms == pytest.approx(0.2, rel=0.3)  # the size of AdamW's updates


def test_it_learns_and_the_learning_rate_is_both_parts():
    dit, optimizer = make()
    losses = train(dit, optimizer, 40)
    assert losses[-1] < 0.5 * losses[0]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(dit.state_dict())
    train(dit, optimizer, 2)
    assert all(torch.equal(value, before[name]) for name, value in dit.state_dict().items())


def test_a_resumed_training_goes_on_as_if_nothing_had_been():
    dit, optimizer = make()
    train(dit, optimizer, 3)
    weights, state = copy.deepcopy(dit.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = train(dit, optimizer, 4, seed=1)
    resumed, other = make(lr=0.5)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    assert train(resumed, other, 4, seed=1) == expected
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.01]
