"""Shared by tests: no network, keys or data; tiny untrained priors; a spy on batches; a finished run's folder."""

import os
import shutil
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton asks when it is first imported

torch.set_num_threads(1)  # tiny tensors: the workers of OpenMP would only wait for each other

TINY_VAE = {
    "target": "vsr_lightning.models.vae.VAE",
    "latent_channels": 4,
    "widths": [8, 8, 8],
    "encoder_blocks": [1, 1, 1],
    "decoder_blocks": [1, 1, 1],
}
TINY_DIT = {
    "target": "vsr_lightning.models.video_dit.VideoDiT",
    "latent_channels": 4,
    "num_frames": 10,
    "latent_size": 8,
    "width": 32,
    "depth": 1,
    "heads": 2,
}
SCHEDULE = {"target": "vsr_lightning.models.schedule.LinearSchedule", "num_steps": 1000}


@pytest.fixture(autouse=True)
def isolated_env(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No W&B, no API key, and an empty folder where data would be."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("VSR_DATA_DIR", str(tmp_path_factory.mktemp("no_data")))


@pytest.fixture
def tiny_prior(tmp_path: Path) -> Path:
    """The folder of an untrained prior of 10 frames of 64 x 64 with one channel."""
    return make_tiny_prior(tmp_path / "tiny_prior", in_channels=1)


@pytest.fixture
def tiny_rgb_prior(tmp_path: Path) -> Path:
    """The folder of an untrained prior of 10 frames of 64 x 64 in colour."""
    return make_tiny_prior(tmp_path / "tiny_rgb_prior", in_channels=3)


def make_tiny_prior(folder: Path, in_channels: int) -> Path:
    from vsr_lightning.models.prior import save_prior
    from vsr_lightning.targets import build

    vae_section = {**TINY_VAE, "in_channels": in_channels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, dit = build(vae_section, "vae"), build(TINY_DIT, "dit")
        for name, parameter in dit.named_parameters():  # fresh, its gates and its output are zero, whatever goes in
            if not name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.normal_(parameter, std=0.1)
    save_prior(folder, {"vae": vae_section, "dit": TINY_DIT, "schedule": SCHEDULE, "training": []}, vae, dit)
    return folder


@pytest.fixture
def restored_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of items in every batch that is restored from here on."""
    from vsr_lightning.inference.lit_vsr import LitVSR

    sizes: list[int] = []
    predict_step = LitVSR.predict_step

    def spy(self, batch, batch_idx):
        sizes.append(batch.size)
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(LitVSR, "predict_step", spy)
    return sizes


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fabricated sweep over numbers of frames, with its figures. Made once, and only read."""
    from fabricated import make_run

    return make_run(tmp_path_factory.mktemp("runs") / "frame_count")


@pytest.fixture(scope="session")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report about a fabricated sweep of 2,000 items with 100 clips. Made once."""
    from fabricated import make_large_run

    from vsr_lightning.figures.report import make_report

    folder = tmp_path_factory.mktemp("large")
    return make_report([make_large_run(folder / "run")], folder / "report.html")


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / "frame_count"))


@pytest.fixture
def report(tmp_path: Path):
    """Write the report about some run folders, and parse it."""
    from fabricated import Page

    from vsr_lightning.figures.report import make_report

    return lambda *folders: Page(make_report(folders, tmp_path / "out" / "report.html"))
