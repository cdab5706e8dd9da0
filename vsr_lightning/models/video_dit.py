"""The unconditional video diffusion transformer.

The blocks are STDiT's (Open-Sora 1.0), adaLN-single modulation included, without its conditional embeddings and with
a norm before the attention over time. As there, that attention has no modulation of its own but the first one's gate.
`attention: factorized` is STDiT's and the paper's, space then time; `attention: full` attends over all of space
and time at once.

Shapes: B batch, F frames, c latent channels, h w latent cells, S = h w, N tokens of a sequence, D width.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vsr_lightning.errors import UserError
from vsr_lightning.models.layers import GELU, Linear, compiles_for_gpu, trains_compiled

ROPE_BASE = 100.0  # the longest axis has some ten positions, where language models have thousands
EPS = 1e-6  # of norms


class Attention(nn.Module):
    """Multi-head self-attention with QK-norm (Henry et al. 2020) and rotary positions (Su et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS)
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """x: (B, N, D); rope: `rotations` (2, N, D / heads), None for no rotation."""
        # Heads stay behind tokens, as the projections leave them: attention takes strides, other orders cost copies.
        # q and k are one tensor and v another: compiled, the gradients of three parts of one are joined by masks.
        (w_qk, w_v), (b_qk, b_v) = (
            each.tensor_split([2 * len(each) // 3]) for each in (self.qkv.weight, self.qkv.bias)
        )
        # The weights of attention add up to one, so the bias of values comes out of it as it went in. Added where the
        # last layer's is, its gradient needs no pass over those of the values.
        goes_around = trains_compiled(b_v)
        v = functional.linear(x, w_v, None if goes_around else b_v).unflatten(-1, (self.heads, -1))
        b_out = self.out.bias + (self.out.weight * b_v).sum(dim=1) if goes_around else None
        q, k = self._queries_and_keys(x, w_qk, b_qk, rope)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2), b_out)

    def _queries_and_keys(self, x: Tensor, weight: Tensor, bias: Tensor, rope: Tensor | None) -> Sequence[Tensor]:
        """(B, N, heads, D / heads) each, by weight (2 D, D) and bias (2 D), normalised and rotated."""
        norms = torch.stack((self.q_norm.weight, self.k_norm.weight))
        if rope is None or not fuses(x, norms.shape[-1]):
            qk = functional.linear(x, weight, bias).unflatten(-1, (2, self.heads, -1))
            return prepare(qk, norms, rope, EPS).to(qk.dtype).unbind(2)
        from vsr_lightning.models import fused_qk  # only where Triton is

        qk = functional.linear(x, weight).unflatten(-1, (2, self.heads, -1))
        return fused_qk.prepare(qk, bias, norms, rope, EPS)


def fuses(x: Tensor, channels: int) -> bool:
    """Whether `fused_qk` prepares queries and keys of heads with so many channels: a power of 2, compiled for a GPU."""
    return compiles_for_gpu(x) and channels & (channels - 1) == 0


def prepare(qk: Tensor, weight: Tensor, rope: Tensor | None, eps: float) -> Tensor:
    """RMS norm of qk (B, N, 2, heads, k) by head times weight (2, k), and rotation, in float32; as in `fused_qk`."""
    qk = functional.rms_norm(qk.float(), qk.shape[-1:], eps=eps) * weight[:, None]
    return qk if rope is None else rotate(qk.flatten(2, 3), rope).view_as(qk)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention (Vaswani et al. 2017, Eq. 1); all (B, heads, N, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # PyTorch's kernel is hardly faster than in float32 there. This is, though it keeps weights (B, heads, N, N)
        # and rounds somewhat more.
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1) @ v
    return functional.scaled_dot_product_attention(q, k, v)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the pairs of x (..., N, heads, 2k), number i with number k + i, as `rotations` (2, N, 2k) say."""
    cos, sin = rope.to(x.dtype)[:, :, None]
    # Swapping by `flip` is one pass over memory in either direction; joining two halves is several.
    return x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin


def rotations(angles: Tensor) -> Tensor:
    """What `rotate` multiplies by, from angles (N, k): the cosine, and the sine with its sign, (2, N, 2k)."""
    return torch.stack((torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)))


class Block(nn.Module):
    """One STDiT block. The six modulation vectors are a shared function of t plus a table of the block's own."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, factorized: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.table = nn.Parameter(torch.zeros(6, width))  # zero gates: every block starts as the identity
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.mlp = nn.Sequential(Linear(width, hidden), GELU(), Linear(hidden, width))
        self.time_norm = nn.LayerNorm(width, elementwise_affine=False, eps=EPS) if factorized else None
        self.time_attention = Attention(width, heads) if factorized else None

    def forward(self, x: Tensor, modulation: Tensor, rope: Tensor) -> Tensor:
        """x: (B, F, S, D); modulation: (B, 6, D); rope: rotations over time, or over space-time for full attention."""
        modulation = modulation + self.table.to(modulation.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, :, None, None].unbind(1)
        h = self.norm1(x) * (1 + scale1) + shift1
        if self.time_attention is None or self.time_norm is None:
            x = x + gate1 * self.attention(h.flatten(1, 2), rope).view_as(x)
        else:
            x = x + gate1 * self.attention(h.flatten(0, 1)).view_as(x)
            h = rearrange(self.time_norm(x), "b f s d -> (b s) f d")
            x = x + gate1 * rearrange(self.time_attention(h, rope), "(b s) f d -> b f s d", b=len(x))
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class VideoDiT(nn.Module):
    """Predicts eps or v (`prediction`) from a noisy latent video. No conditions, no learned variance."""

    space_embedding: Tensor
    rope: Tensor

    def __init__(
        self,
        latent_channels: int = 4,
        num_frames: int = 10,
        latent_size: int = 8,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        attention: str = "full",
        prediction: str = "v",
    ) -> None:
        super().__init__()
        if attention not in ("full", "factorized"):
            raise UserError(f"dit.attention: '{attention}' is not 'full' or 'factorized'")
        if prediction not in ("v", "eps"):
            raise UserError(f"dit.prediction: '{prediction}' is not 'v' or 'eps'")
        sizes = {"latent_channels": latent_channels, "num_frames": num_frames, "latent_size": latent_size}
        for name, size in {**sizes, "width": width, "depth": depth, "heads": heads}.items():
            if size < 1:
                raise UserError(f"dit.{name}: {size} is not at least 1")
        if width % (heads * 8):
            raise UserError(f"dit.width: {width} is not a multiple of 8 x dit.heads ({heads})")
        self.latent_shape = (num_frames, latent_channels, latent_size, latent_size)
        self.prediction = prediction
        self.embed = nn.Linear(latent_channels, width)
        self.t_embed = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, factorized=attention == "factorized") for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.final_table = nn.Parameter(torch.zeros(2, width))
        self.final = nn.Linear(width, latent_channels)
        axes = (num_frames, latent_size, latent_size) if attention == "full" else (num_frames,)
        self.register_buffer("space_embedding", sincos_2d(latent_size, width), persistent=False)
        self.register_buffer("rope", rotations(axial_rope(axes, width // heads)), persistent=False)
        self._initialise()

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """z_t: (B, F, c, h, w); t: (B,) in 0 … T-1. Returns the prediction, float32, of z_t's shape."""
        x = self.embed(rearrange(z_t, "b f c h w -> b f (h w) c"))
        x = x + self.space_embedding.to(x.dtype)  # under autocast x stays bf16 in all blocks: half the traffic
        t_embedding = self.t_embed(timestep_embedding(t))  # (B, D)
        modulation = self.t_modulation(t_embedding).unflatten(1, (6, -1))
        for block in self.blocks:
            x = block(x, modulation, self.rope)
        final = t_embedding[:, None] + self.final_table.to(t_embedding.dtype)
        shift, scale = final[:, :, None, None].unbind(1)
        x = self.final(self.final_norm(x) * (1 + scale) + shift)
        return rearrange(x, "b f (h w) c -> b f c h w", h=z_t.shape[-2]).float()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zero_layers: list[nn.Linear] = [self.t_modulation[-1], self.final]  # type: ignore[list-item]
        for layer in zero_layers:
            nn.init.zeros_(layer.weight)


def timestep_embedding(t: Tensor, size: int = 256, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features of t (B,), (B, size), as in DDPM."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def sincos_2d(size: int, width: int) -> Tensor:
    """Fixed embedding of an S = size x size grid, (S, D): half of D for each axis (as in DiT, MAE)."""
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(size)[:, None] * frequencies  # (size, D / 4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=-1)
    rows, columns = axis[:, None].expand(-1, size, -1), axis[None].expand(size, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)


def axial_rope(axes: tuple[int, ...], head_width: int) -> Tensor:
    """Rotation angles (N, head_width / 2) of a grid of N = product(axes) positions, the pairs shared among the axes."""
    pairs = head_width // 2
    shares = [pairs // len(axes)] * len(axes)
    shares[0] += pairs - sum(shares)
    positions = torch.cartesian_prod(*(torch.arange(length) for length in axes)).reshape(-1, len(axes))
    angles = [
        positions[:, axis, None] * ROPE_BASE ** (-torch.arange(share) / share) for axis, share in enumerate(shares)
    ]
    return torch.cat(angles, dim=-1)
