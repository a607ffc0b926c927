"""A ControlNet for edges (white lines on black), trained beside the frozen base.

python scripts/python.py scripts/demoset control OUT     # OUT/control.safetensors

It is a copy of the base's time embedding, input and middle blocks with the host's hint block and
zero convolutions, narrow like the base. Half of the captions are dropped, so that the lines decide.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import finetune, narrow
from .train_base import noise_loss

STORED = "control.safetensors"
FILE = Path("controlnet/demoset-edges.safetensors")
# The hint block's channels between its convolutions, here and in the host; every other one halves.
HINT = (8, 8, 16, 16, 32, 32, 64)
WIDE_HINT = (16, 16, 32, 32, 96, 96, 256)
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


class NarrowControl(nn.Module):
    """What is added to the base's two skip connections and its middle block."""

    def __init__(self, widths: narrow.Widths) -> None:
        super().__init__()
        self.widths = widths
        base, channels = narrow.NarrowUNet(widths), widths.channels
        self.time_embed, self.input_blocks = base.time_embed, base.input_blocks
        self.middle_block = base.middle_block
        layers: list[nn.Module] = []
        for index, (n_in, n_out) in enumerate(pairwise((3, *HINT, channels))):
            convolution = nn.Conv2d(n_in, n_out, 3, 2 if index in (2, 4, 6) else 1, 1)
            # PyTorch's default lets thin lines fade to a three-hundredth of the base's features
            # by the end: nothing would be learned in hundreds of steps. SiLU halves small values.
            nn.init.normal_(convolution.weight, std=1.8 * (9 * n_in) ** -0.5)
            layers += [convolution, nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers[:-1])
        self.zero_convs = nn.ModuleList([_zero_conv(channels) for _ in base.input_blocks])
        self.middle_block_out = _zero_conv(channels)

    def start_from(self, base: narrow.NarrowUNet) -> None:
        """Copy the base's blocks."""
        for name in ("time_embed", "input_blocks", "middle_block"):
            self.get_submodule(name).load_state_dict(base.get_submodule(name).state_dict())

    def forward(
        self, latents: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor
    ) -> list[Tensor]:
        """Two tensors for the skips, input order, and one for the middle; hint (B, 3, 8h, 8w)."""
        emb = self.time_embed(narrow.timestep_embedding(timesteps))
        hidden = self.input_blocks[0][0](latents) + self.input_hint_block(hint)
        out = [self.zero_convs[0](hidden)]
        hidden = narrow.run_layers(self.input_blocks[1], hidden, emb, context)
        out.append(self.zero_convs[1](hidden))
        hidden = narrow.run_layers(self.middle_block, hidden, emb, context)
        return [*out, self.middle_block_out(hidden)]


def _zero_conv(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution)


def widen(state: dict[str, Tensor], widths: narrow.Widths) -> dict[str, Tensor]:
    """The host's ControlNet state dict from the narrow one."""
    axes = narrow.Indices(widths)
    sizes, wide_sizes = (3, *HINT), (3, *WIDE_HINT)
    used = [(torch.arange(n), wide) for n, wide in zip(sizes, wide_sizes, strict=True)]
    used.append(axes.channels)
    wide = {}
    for key, value in state.items():
        if key.startswith("input_hint_block."):
            layer = int(key.split(".")[1]) // 2
            wide[key] = narrow.spread(value, (used[layer + 1], used[layer]))
        else:
            wide[key] = narrow.spread(value, axes.of(key))
    return wide


def load(weights: Path) -> NarrowControl:
    """The narrow ControlNet from the folder of the weights."""
    state, widths = narrow.load(weights / STORED)
    control = NarrowControl(widths)
    control.load_state_dict(state)
    return control


def write(weights: Path, models: Path) -> Path:
    """Write it into a ComfyUI models folder, in fp16."""
    state, widths = narrow.load(weights / STORED)
    return finetune.write_half(widen(state, widths), models / FILE)


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
    control.to(device=options.device, memory_format=torch.channels_last)
    trained = finetune.fit(control, options, training_loss(control, base, options))
    path = options.out / STORED
    narrow.save(trained, base.widths, path)
    print(f"{path} {path.stat().st_size / 1e6:.2f} MB")
