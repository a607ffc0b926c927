"""Short trainings of something beside the frozen base: counted in steps, seeded, averaged."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..host import tokenizer, use_host
from ..models import narrow
from ..models import vae as autoencoder
from ..models.packed import WEIGHTS
from ..models.text import TextFeatures
from ..world import scenes
from . import data


def parser(description: str | None, steps: int, batch: int, rate: float) -> argparse.ArgumentParser:
    """The command line of such a training, with its defaults."""
    out = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("out", type=Path, help="folder for what is kept between runs, and results")
    out.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the set's weights")
    out.add_argument("--samples", type=int, default=6000)
    out.add_argument("--steps", type=int, default=steps)
    out.add_argument("--batch", type=int, default=batch)
    out.add_argument("--rate", type=float, default=rate)
    out.add_argument("--seed", type=int, default=11)
    out.add_argument("--threads", type=int, default=1)
    out.add_argument("--device", default="cpu")
    return out


def parse(command_line: argparse.ArgumentParser) -> argparse.Namespace:
    """Read it, make the output folder, set the threads."""
    options = command_line.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def load_codec(options: argparse.Namespace) -> autoencoder.NarrowVAE:
    """The stored VAE on the training's device."""
    return autoencoder.load(options.weights / "vae.safetensors", options.device)


def domain(options: argparse.Namespace) -> data.Domain:
    """Latents and captions of the training series, kept in the output folder."""
    use_host()
    text = TextFeatures(tokenizer(), options.device)
    return data.prepare(options.seed, options.samples, load_codec(options), text, options.out)


def frozen_base(options: argparse.Namespace) -> narrow.NarrowUNet:
    """The stored UNet, not to be trained."""
    state, widths = narrow.load(options.weights / "unet.safetensors")
    unet = narrow.NarrowUNet(widths)
    unet.load_state_dict(state)
    unet.requires_grad_(False)
    return narrow.placed(unet, options.device)


def drawn_scenes(seed: int, count: int) -> list[tuple[int, scenes.Scene, torch.Tensor]]:
    """Index, scene and image (3, 128, 128) of a series' first samples, photographs left out."""
    photos, drawn = scenes.load_photos(), []
    for index in range(count):
        image, _, scene = scenes.sample(seed, index, photos)
        if scene is not None:
            drawn.append((index, scene, torch.from_numpy(image)))
    return drawn


def fit(
    module: nn.Module,
    options: argparse.Namespace,
    loss_of: Callable[[torch.Generator], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Minimise `loss_of`; returns the averages of the parameters that need a gradient."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=options.rate, betas=(0.9, 0.99))
    average = {name: p.detach().clone() for name, p in trained.items()}
    generator = torch.Generator(options.device).manual_seed(options.seed)
    began, losses = time.time(), []
    for step in range(1, options.steps + 1):
        falling = 0.02 + 0.98 * math.cos(step / options.steps * math.pi / 2)
        optimiser.param_groups[0]["lr"] = options.rate * min(1, step / 30) * falling
        loss = loss_of(generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimiser.step()
        losses.append(loss.detach())
        decay = min(0.99, step / (step + 9))
        for name, value in trained.items():
            average[name].lerp_(value.detach(), 1 - decay)
        if step % 25 == 0:
            mean = torch.stack(losses[-25:]).mean().item()
            print(f"{step} {time.time() - began:.0f}s loss {mean:.4f}", flush=True)
    return average
