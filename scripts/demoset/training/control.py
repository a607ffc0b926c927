"""Train the ControlNet beside the frozen base, on scenes and the lines where their colours change.

python scripts/python.py scripts/demoset control OUT     # OUT/control.safetensors

Half of the captions are dropped, so that the lines decide.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import narrow
from ..models.control import STORED, NarrowControl
from . import finetune
from .base import noise_loss

THRESHOLD = 0.15
NO_TEXT = 0.5


def edges(images: Tensor) -> Tensor:
    """Where the colour changes from a pixel to the next: (B, 3, H, W) in 0..1 to (B, H, W) bool."""
    across = F.pad((images[..., 1:] - images[..., :-1]).abs().amax(1), (0, 1))
    down = F.pad((images[..., 1:, :] - images[..., :-1, :]).abs().amax(1), (0, 0, 0, 1))
    return torch.maximum(across, down) > THRESHOLD


def hint_images(lines: Tensor, thickness: int = 1) -> Tensor:
    """White lines on black (B, 3, H, W) from edges (B, H, W); an odd `thickness` in pixels."""
    thick = F.max_pool2d(lines[:, None].float(), thickness, 1, thickness // 2)
    return thick.expand(-1, 3, -1, -1)


def lines_of(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Indices (N,) of the samples with edges and these (N, 128, 128), kept in the output folder."""
    path = options.out / f"edges-{options.seed}-{options.samples}.pt"
    if not path.is_file():
        drawn = finetune.drawn_scenes(options.seed, options.samples)
        lines = torch.stack([edges(image[None])[0] for _, _, image in drawn])
        torch.save({"indices": torch.tensor([index for index, *_ in drawn]), "lines": lines}, path)
    kept = torch.load(path, weights_only=True)
    return kept["indices"], kept["lines"]


def training_loss(
    control: NarrowControl, base: narrow.NarrowUNet, options: argparse.Namespace
) -> Callable[[torch.Generator], Tensor]:
    """The loss of a random batch, lines drawn 1, 3 or 5 pixels thick."""
    domain, device = finetune.domain(options), options.device
    indices, lines = lines_of(options)

    def loss_of(generator: torch.Generator) -> Tensor:
        drawn = torch.rand(3, options.batch, generator=generator, device=device).cpu()
        rows = (drawn[0] * len(indices)).long()
        context = domain.context(indices[rows], drawn[1] >= NO_TEXT).to(device)
        thickness = 1 + 2 * int(drawn[2, 0] * 3)
        hint = hint_images(lines[rows].to(device), thickness)
        hint = hint.contiguous(memory_format=torch.channels_last)

        def predict(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            return base(noisy, timesteps, context, control(noisy, timesteps, context, hint))

        latents = domain.latents[indices[rows]].to(device)
        return noise_loss(predict, latents, context, generator, dwell=True)

    return loss_of


def main() -> None:
    """Command line."""
    options = finetune.parse(finetune.parser(__doc__, steps=600, batch=8, rate=1e-3))
    torch.manual_seed(options.seed)
    base = finetune.frozen_base(options)
    control = NarrowControl(base.widths)
    control.start_from(base)
    narrow.placed(control, options.device)
    trained = finetune.fit(control, options, training_loss(control, base, options))
    path = options.out / STORED
    narrow.save(trained, base.widths, path)
    print(f"{path} {path.stat().st_size / 1e6:.2f} MB")
