"""The prior: VAE, video DiT and noise schedule as one thing that sampling needs, and its folder on disk.

A folder holds `vae.safetensors`, `dit.safetensors` (EMA weights; bf16 on disk, float32 in memory until they are
compiled for autocast) and `card.yaml`: how to rebuild the networks and the schedule, how they were trained, and what
was measured.
"""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vsr_lightning import files
from vsr_lightning.errors import UserError
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.models.vae import VAE, compile_convolutions
from vsr_lightning.models.video_dit import VideoDiT
from vsr_lightning.targets import build

FORMAT = 1
CUDA_GRAPHS = {"triton.cudagraphs": True}  # for torch.compile; nothing on a CPU
Part = TypeVar("Part", bound=nn.Module)


class Prior(nn.Module):
    """What videos look like: p(z) by a DiT in the latent space of a VAE."""

    def __init__(self, vae: VAE, dit: VideoDiT, schedule: LinearSchedule, card: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.vae, self.dit, self.schedule = vae, dit, schedule
        self.card = card or {}
        if vae.latent_channels != dit.latent_shape[1]:
            raise UserError(
                f"dit.latent_channels: {dit.latent_shape[1]} is not the VAE's {vae.latent_channels}; make them equal"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(F, c, h, w) of one video."""
        return self.dit.latent_shape

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(F, C, H, W) of one video."""
        frames, _, h, w = self.latent_shape
        return frames, self.vae.in_channels, h * self.vae.downsampling, w * self.vae.downsampling

    def compile_for_sampling(self, autocast: torch.dtype | None = None) -> None:
        """Compile, in place, the two networks that every guided step differentiates.

        On a GPU each becomes two CUDA graphs, forward and backward, captured at its second call and replayed from the
        third on. What a network returns is overwritten when it runs again.

        Args:
            autocast: the type that layers will compute in. Their weights are turned into it for good, as each step
                would else convert them; those of a folder lose nothing in bf16. Then run the networks under that
                autocast only, compiled or not.
        """
        if autocast is not None:
            for layer in (*self.dit.modules(), *self.vae.decoder.modules()):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(autocast)
        self.dit.compile(dynamic=False, options=CUDA_GRAPHS)
        compile_convolutions(self.vae.decoder, CUDA_GRAPHS)

    def encode(self, x: Tensor) -> Tensor:
        """Video (B, F, C, H, W) in [-1, 1] -> normalised posterior mean (B, F, c, h, w)."""
        return self.vae.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Normalised latent (B, F, c, h, w) -> video (B, F, C, H, W), differentiable."""
        return self.vae.decode(z)

    def eps(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The noise in z_t (B, F, c, h, w) at timesteps t (B,), whichever of eps and v the network predicts."""
        prediction = self.dit(z_t, t)
        if self.dit.prediction == "eps":
            return prediction
        return self.schedule.eps_from_velocity(prediction, z_t, t)


def save_prior(folder: Path, card: dict[str, Any], vae: VAE, dit: VideoDiT | None = None) -> None:
    """Write a prior's folder: everything under temporary names, then renamed, the card last.

    A folder with a card is whole: the old card goes before the first new file takes an old one's place.

    `card` needs `vae`, and `dit` and `schedule` if there is a DiT: the `target:` sections that build them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    latent = {"mean": vae.latent_mean.tolist(), "std": vae.latent_std.tolist()}
    content = {"format": FORMAT, "name": folder.resolve().name, **card, "latent": latent}
    networks = {"vae.safetensors": vae, "dit.safetensors": dit}
    for name, network in networks.items():
        if network is not None:
            with files.naming(folder / name):
                _save_bf16(network, folder / f"{name}.tmp")
    (folder / "card.yaml").unlink(missing_ok=True)
    files.sync(folder)
    for name, network in networks.items():
        if network is not None:
            files.put_in_place(folder / f"{name}.tmp", folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    files.write_text(folder / "card.yaml", yaml.safe_dump(content, sort_keys=False))


def load_prior(folder: str | Path) -> Prior:
    """Load a prior from its folder: evaluation mode, float32, no parameter gradients. Raises UserError."""
    folder = Path(folder)
    card = read_card(folder)
    for part in ("dit", "schedule"):
        if part not in card:
            raise UserError(f"{folder}: holds a VAE only; train a DiT on it and export it")
    dit = _build_part(folder, card, "dit", VideoDiT)
    _load_weights(dit, folder / "dit.safetensors")
    schedule = _build_part(folder, card, "schedule", LinearSchedule)
    vae = load_vae(folder)
    try:
        prior = Prior(vae, dit, schedule, card)
    except UserError as error:
        raise UserError(f"{folder / 'card.yaml'}: {error}") from None
    return prior.eval().requires_grad_(False)


def fingerprint(folder: str | Path, part: str = "") -> str:
    """Eight hex digits that tell a prior (or its `part`, as "vae") from any other, wherever its folder lies.

    Of the weights, and of what the card says that changes what they do. Raises UserError.
    """
    card = read_card(folder)
    parts = [part] if part else [name for name in ("vae", "dit") if name in card]
    used = {key: card.get(key) for key in (*parts, "latent", *([] if part else ["schedule"]))}
    digest = hashlib.sha256(yaml.safe_dump(used).encode())
    for name in parts:
        path = Path(folder) / f"{name}.safetensors"
        if not path.exists():
            raise UserError(f"{path}: no such file; the prior's folder is incomplete, export it again")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def load_vae(folder: str | Path) -> VAE:
    """Load the VAE of a prior's folder, which may hold a VAE alone. Raises UserError."""
    folder = Path(folder)
    card = read_card(folder)
    vae = _build_part(folder, card, "vae", VAE)
    _load_weights(vae, folder / "vae.safetensors")
    # The normalisation is kept in full precision in the card; bf16 would scale the latents by up to 0.4%.
    for name, buffer in (("mean", vae.latent_mean), ("std", vae.latent_std)):
        try:
            values = torch.tensor(card["latent"][name], dtype=buffer.dtype)
        except (KeyError, TypeError, ValueError):
            values = None
        if values is None or values.shape != buffer.shape:
            raise UserError(f"{folder / 'card.yaml'}: latent.{name} is not {len(buffer)} numbers; export it again")
        buffer.copy_(values)
    return vae.eval().requires_grad_(False)


def read_card(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "card.yaml"
    try:
        card = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name the folder of a prior that suits the data (prior=…; data/checkpoints has the "
            "shipped ones), or make one: make train-mnist, make train-bair"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{path}: cannot be read as a prior's card; export the prior again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise UserError(f"{path}: format {found} is unknown to this version, which reads {FORMAT}; export it again")
    for key in ("vae", "latent"):
        if key not in card:
            raise UserError(f"{path}: '{key}' is missing; export the prior again")
    return card


def _build_part(folder: Path, card: dict[str, Any], key: str, kind: type[Part]) -> Part:
    """The network or schedule that a section of the card describes."""
    path = folder / "card.yaml"
    try:
        part = build(card[key], key) if isinstance(card[key], dict) else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(part, kind):
        raise UserError(f"{path}: '{key}' does not describe a {kind.__name__}; export the prior again")
    return part


def _save_bf16(model: nn.Module, path: Path) -> None:
    state = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(state, path)


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the prior's folder is incomplete, export it again") from None
    except (SafetensorError, OSError):
        raise UserError(f"{path}: is not a whole safetensors file; copy or export it again") from None
    expected = model.state_dict()
    if missing := sorted(expected.keys() ^ state.keys()):
        raise UserError(f"{path}: '{missing[0]}' does not match the networks in card.yaml; export the prior again")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{path}: '{name}' has shape {tuple(value.shape)}, card.yaml says {tuple(expected[name].shape)}"
            )
    model.load_state_dict({name: value.float() for name, value in state.items()})
