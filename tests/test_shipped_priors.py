"""The priors in the repository: whole, small enough, and fit for the experiments that name them."""

from pathlib import Path

import pytest
import torch

from vsr_lightning.config import load_config
from vsr_lightning.models.prior import load_prior, read_card

ROOT = Path(__file__).parents[1]
CARDS = sorted(ROOT.glob("data/checkpoints/*/card.yaml"))
COLOURS = {"MovingMNIST": 1, "PushSim": 3, "BAIR": 3}
MAX_BYTES = 36e6


def experiments_with_shipped_priors() -> list[Path]:
    paths = sorted(ROOT.glob("experiments/*/*.yaml"))
    return [path for path in paths if (prior := load_config(path).prior) and (ROOT / prior / "card.yaml").exists()]


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_a_shipped_prior_loads_and_is_small(card):
    files = list(card.parent.iterdir())
    assert {path.name for path in files} == {"card.yaml", "dit.safetensors", "vae.safetensors"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    prior = load_prior(card.parent)
    assert prior.card["name"] == card.parent.name
    assert prior.card["training"][0]["stage"] == "vae"
    assert prior.card["training"][-1]["stage"] == "dit"
    assert all(torch.isfinite(parameter).all() for parameter in prior.parameters())


@pytest.mark.parametrize("path", experiments_with_shipped_priors(), ids=lambda path: "-".join(path.parts[-2:]))
def test_a_shipped_prior_suits_the_experiments_that_name_it(path):
    experiment = load_config(path)
    card = read_card(ROOT / experiment.prior)
    assert card["vae"]["in_channels"] == COLOURS[experiment.data["target"].rpartition(".")[2]]
    assert card["dit"]["num_frames"] == experiment.data["num_frames"]
