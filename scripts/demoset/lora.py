"""A LoRA that turns every picture into night: dark blue ground, glowing objects.

python scripts/python.py scripts/demoset lora OUT        # OUT/lora.safetensors

Rank 8 on the attentions' four projections, narrow like the base. The captions are those of the same
scenes by day, so no word triggers it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import finetune, narrow, scenes
from .train_base import noise_loss

STORED = "lora.safetensors"
FILE = Path("loras/demoset-night.safetensors")
RANK = 8
NIGHTS = 800  # of the samples are drawn by night
NIGHT = (0.05, 0.07, 0.26)  # the ground's colour
NO_TEXT = 0.15
# Blocks of the base, and their names in LoRA files as diffusers and kohya write them.
BLOCKS = {
    "input_blocks.1.1": "down_blocks_0_attentions_0",
    "output_blocks.0.1": "up_blocks_0_attentions_0",
    "output_blocks.1.1": "up_blocks_0_attentions_1",
    "middle_block.1": "mid_block_attentions_0",
}
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def night(image: Tensor, scene: scenes.Scene) -> Tensor:
    """The scene (3, 128, 128) by night: its objects lit up, a glow around them."""
    covers = [torch.from_numpy(scenes.coverage(item)) for item in scene.items]
    cover = torch.stack(covers).amax(0)
    lit = 0.2 + 0.8 * image
    glow = (lit * cover)[None]
    for _ in range(2):
        glow = F.avg_pool2d(glow, 17, 1, 8)
    ground = image.new_tensor(NIGHT)[:, None, None] + 0.5 * glow[0]
    return (ground * (1 - cover) + lit * cover).clamp(0, 1)


class LoraLinear(nn.Module):
    """A frozen projection and the low-rank change to it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.lora_down = nn.Linear(linear.in_features, RANK, bias=False)
        self.lora_up = nn.Linear(RANK, linear.out_features, bias=False)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora_up(self.lora_down(x))


def projections() -> dict[str, str]:
    """Modules of the base that the LoRA changes, and their names in the file."""
    found = {}
    for block, name in BLOCKS.items():
        for attention in ("attn1", "attn2"):
            for projection in PROJECTIONS:
                inner = f"transformer_blocks.0.{attention}.{projection}"
                found[f"{block}.{inner}"] = f"lora_unet_{name}_{inner.replace('.', '_')}"
    return found


def attach(base: narrow.NarrowUNet) -> None:
    """Put a LoRA around each of these projections, in place."""
    for key in projections():
        parent, _, child = key.rpartition(".")
        linear = base.get_submodule(key)
        assert isinstance(linear, nn.Linear)
        setattr(base.get_submodule(parent), child, LoraLinear(linear))


def widen(state: dict[str, Tensor], widths: narrow.Widths) -> dict[str, Tensor]:
    """The LoRA file for the 320 channels that the host loads, in kohya's keys."""
    axes, wide = narrow.Indices(widths), {}
    for key, name in projections().items():
        rows, columns = axes.of(f"{key}.weight")
        wide[f"{name}.lora_down.weight"] = narrow.spread(
            state[f"{key}.lora_down.weight"], (None, columns)
        )
        wide[f"{name}.lora_up.weight"] = narrow.spread(state[f"{key}.lora_up.weight"], (rows, None))
        wide[f"{name}.alpha"] = torch.tensor(float(RANK))
    return wide


def write(weights: Path, models: Path) -> Path:
    """Write it into a ComfyUI models folder, in fp16."""
    state, widths = narrow.load(weights / STORED)
    return finetune.write_half(widen(state, widths), models / FILE)


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
