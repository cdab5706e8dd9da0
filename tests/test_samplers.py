"""What every guided sampler owes: samples that do not interact, steps that are heard, no guidance where none is due."""

import gc
import math
from functools import partial

import pytest
import torch
from test_dps import SHAPE, CurvedPrior, first_frame, normal, replay, seen
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vsr_lightning.inference.dps import dps_sample
from vsr_lightning.inference.dps_data_steps import dps_data_steps_sample
from vsr_lightning.inference.dps_multistep import dps_multistep_sample
from vsr_lightning.inference.dps_particles import dps_particles_sample
from vsr_lightning.inference.dps_polyak import dps_polyak_sample
from vsr_lightning.inference.dps_restart import dps_restart_sample
from vsr_lightning.models.schedule import LinearSchedule

STEPS = 30
SAMPLERS = {
    "dps": dps_sample,
    "dps_polyak": dps_polyak_sample,
    "dps_polyak, deterministic": partial(dps_polyak_sample, eta=0.0),
    "dps_polyak, with momentum": partial(dps_polyak_sample, momentum=0.1),
    "dps_restart": dps_restart_sample,
    "dps_restart, deterministic": partial(dps_restart_sample, eta=0.0, spacing="log_snr"),
    "dps_restart, with a wider gradient": partial(dps_restart_sample, gradient_blur=1.5),
    "dps_data_steps": partial(dps_data_steps_sample, repeats=2),
    "dps_particles": dps_particles_sample,
    "dps_multistep": dps_multistep_sample,
    "dps_multistep, deterministic": partial(dps_multistep_sample, stochastic=False),
}


@pytest.fixture(params=SAMPLERS)
def sample(request):
    """One of the samplers at STEPS steps."""
    return partial(SAMPLERS[request.param], steps=STEPS)


@pytest.fixture
def problem() -> tuple[CurvedPrior, Tensor, Tensor]:
    """A prior, observations of 4 videos, and more draws than any sampler needs."""
    return (
        CurvedPrior(LinearSchedule(60, 1e-3, 0.2)),
        normal(4, 1, *SHAPE[1:], seed=1),
        normal(5 * STEPS, 4, *SHAPE, seed=2),
    )


def test_a_sample_alone_equals_itself_in_a_batch(sample, problem):
    prior, y, draws = problem
    zeta = torch.tensor([0.1, 0.3, 0.5, 1.0])
    together = sample(prior, seen(y), replay(draws), zeta=zeta)
    for b in range(4):
        one = seen(y[b : b + 1])
        alone = sample(prior, one, replay(draws[:, b : b + 1]), zeta=zeta[b].item())
        torch.testing.assert_close(alone, together[b : b + 1], atol=1e-9, rtol=0)


def test_nan_in_one_observation_leaves_the_others_untouched(sample, problem):
    prior, y, draws = problem
    good = sample(prior, seen(y), replay(draws))
    y = y.clone()
    y[1, 0, 0, 0, 0] = math.nan
    bad = sample(prior, seen(y), replay(draws))
    assert torch.equal(bad[[0, 2, 3]], good[[0, 2, 3]])
    assert bad[1].isnan().all()


def test_nothing_observed_is_no_guidance(sample, problem):
    prior, y, draws = problem
    nothing = seen(torch.zeros_like(y), lambda x: 0 * first_frame(x))
    guided, free = (sample(prior, nothing, replay(draws), zeta=zeta) for zeta in (0.5, 0.0))
    assert torch.equal(guided, free)


def test_guidance_brings_the_observation_nearer(sample, problem):
    prior, y, draws = problem
    distance = [
        (first_frame(sample(prior, seen(y), replay(draws), zeta=zeta)) - y).flatten(1).norm(dim=1)
        for zeta in (0.0, 0.5)
    ]
    assert (distance[1] < 0.5 * distance[0]).all()


def test_on_step_hears_every_step(sample, problem):
    prior, y, draws = problem
    heard = []
    sample(prior, seen(y), replay(draws), on_step=lambda *args: heard.append(args))
    assert [index for index, _, _ in heard] == list(range(STEPS))
    assert heard[-1][1].t == 0
    assert all(residual.shape == (4,) and not residual.requires_grad for _, _, residual in heard)


def test_callers_need_no_gradients(sample, problem):
    prior, y, draws = problem
    prior.a.requires_grad_()  # nor must a trainable prior leave a graph behind
    expected = sample(prior, seen(y), replay(draws))
    with torch.no_grad():
        without = sample(prior, seen(y), replay(draws))
        assert not torch.is_grad_enabled()
    for x_hat in (expected, without):
        assert not x_hat.requires_grad
        assert torch.equal(x_hat, expected)
    assert prior.a.grad is None


class IntoMemory(torch.autograd.Function):
    """The identity, but its result is always in the same memory, as a captured network's is."""

    @staticmethod
    def forward(ctx, values, memory):
        return memory.copy_(values).view_as(memory)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_nothing_is_kept_that_a_captured_network_overwrites(sample, problem, monkeypatch):
    prior, y, draws = problem
    expected = sample(prior, seen(y), replay(draws))
    video, eps = torch.empty_like(expected), torch.empty_like(draws[0])
    networks = prior.decode, prior.eps
    monkeypatch.setattr(prior, "decode", lambda z: IntoMemory.apply(networks[0](z), video))
    monkeypatch.setattr(prior, "eps", lambda z_t, t: IntoMemory.apply(networks[1](z_t, t), eps))
    x_hat = sample(prior, seen(y), replay(draws))
    video.zero_()  # as the next batch would
    torch.testing.assert_close(x_hat, expected, atol=1e-6, rtol=0)


@pytest.fixture
def few_objects():
    """Those that were there before are not looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
def test_more_steps_take_no_more_memory(sample, problem):
    prior, y, draws = problem

    def most(steps):
        held = []

        def count(*args):
            gc.collect()
            held.append(sum(each.nbytes for each in gc.get_objects() if isinstance(each, Tensor)))

        sample(prior, seen(y), replay(draws), steps=steps, on_step=count)
        return max(held)

    for steps in (STEPS, STEPS // 2):
        most(steps)  # the matrices of the blurs at these noise levels are kept
    assert most(STEPS) == most(STEPS // 2) > 0


class Reads(TorchFunctionMode):
    """Hears of calls that make a program wait for a GPU: for numbers, or for shapes that depend on numbers."""

    NAMES = ("item", "tolist", "numpy", "cpu", "nonzero", "unique", "masked_select", "repeat_interleave")
    SPECIAL = ("__bool__", "__float__", "__int__", "__index__", "__array__", "__iter__", "__contains__", "__format__")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        by_mask = name in ("__getitem__", "__setitem__") and is_mask(args[1])
        to_cpu = name == "to" and any(map(is_cpu, (*args[1:], *kwargs.values())))
        if name in (*self.NAMES, *self.SPECIAL) or by_mask or to_cpu:
            self.found.append(name)
        with Operators(self.found):
            return function(*args, **kwargs)


class Operators(TorchDispatchMode):
    """The same of operators that others call, which have no name that says so."""

    READ = tuple(getattr(torch.ops.aten, name) for name in ("_local_scalar_dense", "nonzero", "equal", "allclose"))

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in self.READ:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def is_mask(index):
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or getattr(part, "dtype", None) in (torch.bool, torch.uint8) for part in parts)


def is_cpu(argument):
    return isinstance(argument, str | torch.device) and torch.device(argument).type == "cpu"


def test_no_step_waits_for_a_number(sample, problem):
    prior, y, draws = problem
    sample(prior, seen(y), replay(draws))  # what depends on blurs alone is worked out once, on the CPU
    reads = []
    with Reads() as host:
        sample(prior, seen(y), replay(draws), on_step=lambda *args: reads.append(len(host.found)))
    assert reads[-1] == reads[0], host.found  # what is read before the first step is read once


@pytest.mark.parametrize(
    "read",
    [
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, bool, float, int, "{:.1f}".format, torch.nonzero),
        *(lambda x: x.to("cpu"), lambda x: x.to("cpu:0"), lambda x: x.to(device=torch.device("cpu")), lambda x: 1 in x),
        *(lambda x: x[x > 0], lambda x: x[(x > 0).to(torch.uint8)], lambda x: x.__setitem__(x > 0, 1)),
        *(lambda x: torch.equal(x, x), lambda x: torch.allclose(x, x), lambda x: "yes" if x > 0 else "no"),
        *(lambda x: torch.where(x > 0), lambda x: torch.argwhere(x > 0), lambda x: torch.is_nonzero(x)),
        *(lambda x: torch.ones(3)[: x.long()], lambda x: torch.full((2,), x), lambda x: torch.add(x, x, alpha=x)),
    ],
)
def test_what_waits_is_heard(read):
    with Reads() as host:
        read(torch.ones(()))
    assert host.found
