"""The learning rate's course, what decays, noise that a resumed run repeats, and gradient clipping."""

from types import SimpleNamespace

import pytest
import torch

from vsr_lightning.experiment import Training
from vsr_lightning.training.optimisation import clip_gradients, configure_optimizer, lr_factor, step_generator


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (10, 1.0), (15, 1.0), (16, 0.8), (19, 0.2), (20, 0.0), (25, 0.0)],
)
def test_warm_up_constant_decay(step, factor):
    training = Training(max_steps=20, warmup_steps=4, decay_steps=5)
    assert lr_factor(step, training) == pytest.approx(factor)


def test_no_warm_up_and_no_decay():
    training = Training(max_steps=3, warmup_steps=0, decay_steps=0)
    assert [lr_factor(step, training) for step in range(3)] == [1.0, 1.0, 1.0]


def test_only_matrices_decay_and_frozen_parameters_are_left_out():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1))
    module[2].requires_grad_(False)
    training = Training(lr=0.5, weight_decay=0.1, betas=[0.8, 0.9], warmup_steps=2)
    optimizer = configure_optimizer(module, training)["optimizer"]
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert [p is q for p, q in zip(matrices["params"], [module[0].weight], strict=True)] == [True]
    expected = [module[0].bias, module[1].weight, module[1].bias]
    assert [p is q for p, q in zip(vectors["params"], expected, strict=True)] == [True] * 3
    assert (matrices["betas"], matrices["lr"]) == ((0.8, 0.9), 0.25)  # the first step of the warm-up


def test_muon_takes_the_matrices_of_blocks_and_the_same_learning_rate():
    module = torch.nn.ModuleDict(
        {"blocks": torch.nn.ModuleList([torch.nn.Linear(3, 3)]), "head": torch.nn.Linear(3, 1)}
    )
    training = Training(stage="dit", optimizer="muon", lr=0.5, weight_decay=0.1, warmup_steps=2)
    optimizer = configure_optimizer(module, training)["optimizer"]
    muon, matrices, vectors = optimizer.param_groups
    assert [p is q for p, q in zip(muon["params"], [module["blocks"][0].weight], strict=True)] == [True]
    assert [p is q for p, q in zip(matrices["params"], [module["head"].weight], strict=True)] == [True]
    assert len(vectors["params"]) == 2
    assert [group["lr"] for group in optimizer.param_groups] == [0.25] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def draw(step, rank=0, seed=0):
    module = SimpleNamespace(global_step=step, global_rank=rank, device=torch.device("cpu"))
    return torch.randn(8, generator=step_generator(module, seed))


def test_noise_is_a_function_of_seed_step_and_rank():
    first = draw(step=7)
    torch.manual_seed(123)  # the global state plays no part
    assert torch.equal(draw(step=7), first)
    for other in (draw(step=8), draw(step=7, rank=1), draw(step=7, seed=1)):
        assert not torch.equal(other, first)


@pytest.mark.parametrize(("max_norm", "expected"), [(1.0, [0.6, 0.8]), (None, [3.0, 4.0]), (10.0, [3.0, 4.0])])
def test_gradients_are_clipped_and_the_norm_before_is_returned(max_norm, expected):
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(module, max_norm).item() == pytest.approx(5.0)
    torch.testing.assert_close(module.weight.grad, torch.tensor([expected]), atol=1e-5, rtol=0)
