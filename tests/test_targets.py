"""Sections with a `target:`: what they build, and one clear error for every mistake."""

from functools import partial

import pytest
import yaml

from vsr_lightning.errors import UserError
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.targets import build, check_target

SCHEDULE = "vsr_lightning.models.schedule.LinearSchedule"
SAMPLER = "vsr_lightning.inference.dps.dps_sample"


def test_a_class_is_built_and_given_arguments_take_precedence():
    schedule = build({"target": SCHEDULE, "num_steps": 10}, "schedule", num_steps=20)
    assert isinstance(schedule, LinearSchedule)
    assert schedule.num_steps == 20


def test_a_function_is_bound():
    sampler = build({"target": SAMPLER, "zeta": 2.0}, "sampler", steps=3)
    assert isinstance(sampler, partial)
    assert sampler.keywords == {"zeta": 2.0, "steps": 3}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"target": "vsr_lightning.data.moving_mnist.MovingMNIST"}, "section: .*MovingMNIST .*'batch_size'"),
        ({"target": "torch.optim.SGD", "params": []}, "section: torch.optim.SGD .*empty"),
    ],
)
def test_what_a_constructor_refuses_is_the_users_error(section, message):
    with pytest.raises(UserError, match=message):
        build(section, "section")


TARGET_MISTAKES = [
    ("num_steps: 10", "schedule.target: missing"),
    ("target: os.system", "schedule.target: 'os.system' is not allowed"),
    ("target: vsr_lightningx.evil", "is not allowed"),
    ("target: torch.load", "is not allowed"),
    ("target: 5", "schedule.target: '5' is not allowed"),
    ("target: vsr_lightning.models.nope.LinearSchedule", "schedule.target.*vsr_lightning.models.nope"),
    ("target: vsr_lightning.models.schedule.LinearShedule", "schedule.target.*did you mean 'LinearSchedule'"),
    ("target: vsr_lightning.models.schedule.", "schedule.target"),
    (f"target: {SCHEDULE}, num_stps: 10", "schedule.num_stps.*did you mean 'num_steps'"),
    (f"target: {SCHEDULE}, num_steps: ten", "schedule.num_steps: 'ten' is not of type int"),
    (f"target: {SCHEDULE}, num_steps: 1.5", "schedule.num_steps"),
    (f"target: {SCHEDULE}, num_steps: true", "schedule.num_steps"),
    (f"target: {SCHEDULE}, num_steps: null", "schedule.num_steps"),
    (f"target: {SCHEDULE}, beta_end: high", "schedule.beta_end"),
    (f"target: {SAMPLER}, zeta: high", "schedule.zeta"),  # a float or a tensor, which YAML cannot write
    ("target: vsr_lightning.models.vae.VAE, widths: 8", "schedule.widths"),
    ("target: vsr_lightning.models.vae.VAE, widths: [a]", "schedule.widths"),
    ("target: vsr_lightning.data.moving_mnist.MovingMNIST, batch_sze: 2", "did you mean 'batch_size'"),  # of a parent
]


@pytest.mark.parametrize(("section", "message"), TARGET_MISTAKES)
def test_target_mistakes(section, message):
    with pytest.raises(UserError, match=message):
        check_target(yaml.safe_load(f"{{{section}}}"), "schedule")
