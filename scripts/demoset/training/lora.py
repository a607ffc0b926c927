"""Train the LoRA on scenes by night, under the captions of the day, so that no word triggers it.

python scripts/python.py scripts/demoset lora OUT        # OUT/lora.safetensors
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from ..models import narrow
from ..models.lora import STORED, attach
from ..world.night import night
from . import finetune
from .base import noise_loss

NIGHTS = 800  # of the samples are drawn by night
NO_TEXT = 0.15


@torch.no_grad()
def night_latents(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Indices (N,) of the samples with objects and their latents by night (N, 4, 16, 16)."""
    path = options.out / f"night-{options.seed}-{options.samples}.pt"
    if not path.is_file():
        drawn = finetune.drawn_scenes(options.seed, min(options.samples, NIGHTS))
        codec, latents = finetune.load_codec(options), []
        for start in range(0, len(drawn), 32):
            images = [night(image, scene) for _, scene, image in drawn[start : start + 32]]
            pixels = torch.stack(images).to(options.device, memory_format=torch.channels_last)
            with torch.autocast(pixels.device.type, torch.bfloat16):
                latents.append(codec.encode(pixels).float().cpu())
        indices = torch.tensor([index for index, *_ in drawn])
        torch.save({"indices": indices, "latents": torch.cat(latents)}, path)
    kept = torch.load(path, weights_only=True)
    return kept["indices"], kept["latents"]


def training_loss(
    base: narrow.NarrowUNet, options: argparse.Namespace
) -> Callable[[torch.Generator], Tensor]:
    """The loss of a random batch of scenes by night."""
    domain, device = finetune.domain(options), options.device
    indices, latents = night_latents(options)

    def loss_of(generator: torch.Generator) -> Tensor:
        drawn = torch.rand(2, options.batch, generator=generator, device=device).cpu()
        rows = (drawn[0] * len(indices)).long()
        context = domain.context(indices[rows], drawn[1] >= NO_TEXT).to(device)
        return noise_loss(base, latents[rows].to(device), context, generator, dwell=True)

    return loss_of


def main() -> None:
    """Command line."""
    options = finetune.parse(finetune.parser(__doc__, steps=400, batch=8, rate=2e-3))
    torch.manual_seed(options.seed)
    base = finetune.frozen_base(options)
    attach(base)
    base.to(options.device)
    trained = finetune.fit(base, options, training_loss(base, options))
    path = options.out / STORED
    narrow.save(trained, base.widths, path)
    print(f"{path} {path.stat().st_size / 1e6:.2f} MB")
