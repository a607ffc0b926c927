"""A TAESD-shaped autoencoder, trained narrow and written at the width of 64 that the host builds.

There is no normalisation in it, so zero rows and columns for the unused channels change nothing.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import packed

WIDE = 64
LATENT_SCALE = 0.18215  # SD1.5's; the host multiplies latents by it before the UNet sees them


def _conv(n_in: int, n_out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


class Clamp(nn.Module):
    """Soft limit of the latents to -3..3, as in TAESD."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions around an identity skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, last = (_conv(width, width) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        self.fuse = nn.ReLU()
        nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fuse(self.conv(x) + x)


def encoder(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """Image (B, 3, H, W) in 0..1 to latents (B, 4, H/8, W/8); widths at 1/1, 1/2, 1/4, 1/8."""
    layers: list[nn.Module] = [_conv(3, widths[0]), Block(widths[0])]
    for before, width in pairwise(widths):
        layers += [_conv(before, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
    return nn.Sequential(*layers, _conv(widths[3], 4))


def decoder(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """Latents to image; widths as in `encoder`."""
    layers: list[nn.Module] = [Clamp(), _conv(4, widths[3]), nn.ReLU()]
    for width, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
        layers += [Block(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(width, after, bias=False)]
    return nn.Sequential(*layers, Block(widths[0]), _conv(widths[0], 3))


class NarrowVAE(nn.Module):
    """Encoder and decoder with the host's names; latents here are what the UNet sees."""

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 48, 48)) -> None:
        super().__init__()
        self.taesd_encoder = encoder(widths)
        self.taesd_decoder = decoder(widths)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in 0..1 to UNet latents (B, 4, H/8, W/8)."""
        return self.taesd_encoder(images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """UNet latents to images, roughly 0..1 (clamp before use)."""
        return self.taesd_decoder(latents)


def widen(narrow: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of the host's TAESD class, padded with zeros, with SD1.5's latent scale."""
    wide = {}
    for key, value in narrow.items():
        if value.ndim == 1:
            size: tuple[int, ...] = (value.shape[0] if value.shape[0] in (3, 4) else WIDE,)
        else:
            first, last = value.shape[0] in (3, 4), value.shape[1] in (3, 4)
            size = (value.shape[0] if first else WIDE, value.shape[1] if last else WIDE, 3, 3)
        padded = torch.zeros(size, dtype=value.dtype)
        padded[tuple(slice(0, n) for n in value.shape)] = value
        wide[key] = padded
    wide["vae_scale"] = torch.tensor(LATENT_SCALE, dtype=torch.float32)
    wide["vae_shift"] = torch.tensor(0.0)
    return wide


def save(vae: nn.Module, out: Path) -> None:
    """Write the narrow weights packed."""
    packed.save(vae.state_dict(), out)


def load(path: Path, device: str = "cpu") -> NarrowVAE:
    """The narrow autoencoder from its weights file, widths read from the shapes."""
    state, _ = packed.load(path)
    widths = (
        state["taesd_encoder.0.weight"].shape[0],
        state["taesd_encoder.2.weight"].shape[0],
        state["taesd_encoder.6.weight"].shape[0],
        state["taesd_encoder.10.weight"].shape[0],
    )
    vae = NarrowVAE(widths)
    vae.load_state_dict(state)
    return vae.to(device).train(False).requires_grad_(False)
