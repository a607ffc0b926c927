"""A TAESD-shaped autoencoder, trained narrow and written at the width of 64 that the host builds.

There is no normalisation in it, so zero rows and columns for the unused channels change nothing.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import packed
from .scenes import batch, load_photos, photo_crop, scene_rng

WIDE = 64
LATENT_SCALE = 0.18215  # SD1.5's; the host multiplies latents by it before the UNet sees them


def _conv(n_in: int, n_out: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


class Clamp(nn.Module):
    """Soft limit of the latents to -3..3, as in TAESD."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions around an identity skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )
        self.fuse = nn.ReLU()
        nn.init.zeros_(self.conv[4].weight)

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


def training_images(seed: int, start: int, count: int, photos: list) -> torch.Tensor:
    """Three quarters scenes (with blurred photographs among them), a quarter sharp photo crops."""
    drawn = batch(seed, start, count - count // 4, photos).images
    rng = scene_rng(seed + 1, start)
    sharp = [torch.from_numpy(photo_crop(photos, rng)) for _ in range(count // 4)]
    return torch.cat([drawn, torch.stack(sharp)]) if sharp else drawn


def _gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def colour_anchor(images: torch.Tensor) -> torch.Tensor:
    """Brightness and two colour differences of each 8x8 cell, near unit variance: (B, 3, h, w)."""
    red, green, blue = F.avg_pool2d(images, 8).unbind(1)
    brightness = ((red + green + blue) / 3 - 0.5) / 0.27
    return torch.stack([brightness, (red - blue) / 0.45, (green - (red + blue) / 2) / 0.35], 1)


def loss_of(
    vae: NarrowVAE, images: torch.Tensor, noise: torch.Tensor, anchor: float
) -> torch.Tensor:
    """Reconstruction (L1, L2, gradients) from noisy latents, unit variance, and the colour anchor.

    Without the anchor on three latent channels, training stalls where all hues look the same.
    """
    latents = vae.encode(images)
    output = vae.decode(latents + 0.05 * noise).float()
    latents = latents.float()
    pixel = F.l1_loss(output, images) + 2 * F.mse_loss(output, images)
    edges = sum(
        F.l1_loss(a, b) for a, b in zip(_gradients(output), _gradients(images), strict=True)
    )
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    moments = mean.square().mean() + (deviation - 1).square().mean()
    far = F.relu(latents.abs() - 2.6).square().mean()
    colour = F.mse_loss(latents[:, :3], colour_anchor(images))
    return pixel + edges + 0.02 * moments + 0.1 * far + anchor * colour


def train(out: Path, seconds: float, batch_size: int, device: str, seed: int = 7) -> None:
    """Train for a wall-clock budget with a cosine rate over it; saves weights every two minutes."""
    torch.manual_seed(seed)
    vae = NarrowVAE().to(device=device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator(device).manual_seed(seed)
    photos, began, saved, step = load_photos(), time.time(), time.time(), 0
    while (used := time.time() - began) < seconds:
        rate = 2e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 - used / seconds))
        optimiser.param_groups[0]["lr"] = rate
        images = training_images(seed, step * batch_size, batch_size, photos)
        images = images.to(device=device, memory_format=torch.channels_last)
        shape = (images.shape[0], 4, images.shape[2] // 8, images.shape[3] // 8)
        noise = torch.randn(shape, generator=generator, device=device)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(vae, images, noise, max(0.03, 1 - 5 * used / seconds))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 20 == 0:
            print(f"{step} {used:.0f}s loss {loss.item():.4f}", flush=True)
        if time.time() - saved > 120:
            saved = time.time()
            save(vae, out)
    save(vae, out)


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.seconds, options.batch, options.device)
