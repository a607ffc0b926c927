"""A LoRA that turns every picture into night.

Rank 8 on the attentions' four projections, narrow like the base.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from . import narrow, packed

STORED = "lora.safetensors"
FILE = Path("loras/demoset-night.safetensors")
RANK = 8
# Blocks of the base, and their names in LoRA files as diffusers and kohya write them.
BLOCKS = {
    "input_blocks.1.1": "down_blocks_0_attentions_0",
    "output_blocks.0.1": "up_blocks_0_attentions_0",
    "output_blocks.1.1": "up_blocks_0_attentions_1",
    "middle_block.1": "mid_block_attentions_0",
}
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


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
    return packed.write_half(widen(state, widths), models / FILE)
