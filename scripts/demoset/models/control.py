"""A ControlNet for edges, white lines on black, beside the base.

It is a copy of the base's time embedding, input and middle blocks with the host's hint block and
zero convolutions, narrow like the base.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from . import narrow, packed

STORED = "control.safetensors"
FILE = Path("controlnet/demoset-edges.safetensors")
# The hint block's channels between its convolutions, here and in the host; every other one halves.
HINT = (8, 8, 16, 16, 32, 32, 64)
WIDE_HINT = (16, 16, 32, 32, 96, 96, 256)


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
        hidden = self.input_blocks.get_submodule("0.0")(latents) + self.input_hint_block(hint)
        out = [self.zero_convs[0](hidden)]
        hidden = narrow.run_layers(self.input_blocks[1], hidden, emb, context)
        out.append(self.zero_convs[1](hidden))
        hidden = narrow.run_layers(self.middle_block, hidden, emb, context)
        return [*out, self.middle_block_out(hidden)]


def _zero_conv(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
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
    return packed.write_half(widen(state, widths), models / FILE)
