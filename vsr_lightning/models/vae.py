"""The spatial VAE: every frame on its own, 8 times smaller, with a light decoder.

The decoder is differentiated at every step of posterior sampling, so it works at half resolution and below.

Shapes: B batch, F frames, N = B F, C channels, H W pixels, c latent channels, h = H / 8, w = W / 8.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from vsr_lightning.errors import UserError
from vsr_lightning.models.layers import SHUFFLE, Conv2d, NormSiLU, PixelShuffle, SubpixelConv2d

# For torch.compile: what is cheap is computed wherever it is read. Kept in memory between forward and backward, or
# between kernels, a norm's terms would be float32, and cost more traffic than the bf16 numbers that they are made of.
RECOMPUTED = {"realize_reads_threshold": 16, "realize_acc_reads_threshold": 16, "realize_opcount_threshold": 128}


class ResBlock(nn.Module):
    """Two 3x3 convolutions around an identity; the second starts at zero, so the block does too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = NormSiLU(8, width)
        self.conv1 = Conv2d(width, width, 3, padding=1)
        self.norm2 = NormSiLU(8, width)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h, bias = self.conv1.without_bias(self.norm1(x))
        return x + self.conv2(self.norm2(h, bias))


class Encoder(nn.Module):
    """(N, C, H, W) -> (N, 2c, h, w): mean and log-variance of the latent."""

    def __init__(self, in_channels: int, latent_channels: int, widths: list[int], blocks: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(SHUFFLE),
            Conv2d(SHUFFLE**2 * in_channels, widths[0], 3, padding=1),
        ]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level > 0:
                layers.append(Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            layers += [ResBlock(width) for _ in range(count)]
        layers += [
            NormSiLU(8, widths[-1]),
            nn.Identity(),  # weights are known by the number of their layer, and saved ones counted SiLU
            Conv2d(widths[-1], 2 * latent_channels, 3, padding=1),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


class Decoder(nn.Module):
    """(N, c, h, w) -> (N, C, H, W); widths and blocks are listed from the finest level, as the encoder's."""

    def __init__(self, out_channels: int, latent_channels: int, widths: list[int], blocks: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2d(latent_channels, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            layers += [ResBlock(widths[level]) for _ in range(blocks[level])]
            if level > 0:
                # A 1x1 convolution and a shuffle: four times cheaper than a convolution after upsampling.
                layers += [SubpixelConv2d(widths[level], SHUFFLE**2 * widths[level - 1], 1), PixelShuffle()]
        layers += [
            NormSiLU(8, widths[0]),
            nn.Identity(),  # as in the encoder
            SubpixelConv2d(widths[0], SHUFFLE**2 * out_channels, 3, padding=1),
        ]
        self.layers = nn.Sequential(*layers, PixelShuffle())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class VAE(nn.Module):
    """KL-regularised autoencoder of single frames (Kingma & Welling 2014; Rombach et al. 2022), f = 8.

    The per-channel mean and standard deviation of the latents live in the model, so that `encode` and `decode`
    speak of latents of zero mean and unit variance, which diffusion expects.
    """

    downsampling = 8
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        in_channels: int = 1,
        latent_channels: int = 4,
        widths: list[int] | None = None,
        encoder_blocks: list[int] | None = None,
        decoder_blocks: list[int] | None = None,
    ) -> None:
        super().__init__()
        widths = widths or [64, 112, 160]
        encoder_blocks, decoder_blocks = encoder_blocks or [1, 1, 1], decoder_blocks or [1, 2, 2]
        if not len(widths) == len(encoder_blocks) == len(decoder_blocks) == 3:
            raise UserError("vae: widths, encoder_blocks and decoder_blocks are three numbers each (H/2, H/4, H/8)")
        if in_channels < 1 or latent_channels < 1:
            raise UserError(f"vae: in_channels {in_channels} and latent_channels {latent_channels} are not at least 1")
        if any(width < 1 or width % 8 for width in widths):
            raise UserError(f"vae.widths: {widths} are not all multiples of 8")
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.encoder = Encoder(in_channels, latent_channels, widths, encoder_blocks)
        self.decoder = Decoder(in_channels, latent_channels, widths, decoder_blocks)
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, C, H, W) -> mean and log-variance of the raw latent, float32 (B, F, c, h, w) each."""
        raw = rearrange(self.encoder(rearrange(x, "b f c h w -> (b f) c h w")), "(b f) c h w -> b f c h w", b=len(x))
        mean, log_variance = raw.float().chunk(2, dim=2)
        return mean, log_variance.clamp(-20, 10)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Raw latent (B, F, c, h, w) -> video (B, F, C, H, W), float32."""
        frames = self.decoder(rearrange(latent, "b f c h w -> (b f) c h w"))
        return rearrange(frames, "(b f) c h w -> b f c h w", b=len(latent)).float()

    def encode(self, x: Tensor) -> Tensor:
        """The normalised posterior mean, (B, F, c, h, w)."""
        return (self.moments(x)[0] - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def decode(self, z: Tensor) -> Tensor:
        """Normalised latent (B, F, c, h, w) -> video (B, F, C, H, W); differentiable, not clamped."""
        return self.decode_raw(z * _per_channel(self.latent_std) + _per_channel(self.latent_mean))


def compile_convolutions(part: Encoder | Decoder, options: Mapping[str, bool] | None = None) -> None:
    """Compile half of a VAE in place, channels last, which Inductor else forgoes for the few channels of an end."""
    part.compile(dynamic=False, options={"force_layout_optimization": True, **RECOMPUTED, **(options or {})})


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
