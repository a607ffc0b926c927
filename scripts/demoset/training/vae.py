"""Train the autoencoder: `python scripts/python.py scripts/demoset vae OUT.safetensors`."""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..models.narrow import placed
from ..models.vae import NarrowVAE, save
from ..world.scenes import batch, load_photos, photo_crop, scene_rng


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
    vae = placed(NarrowVAE(), device)
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
