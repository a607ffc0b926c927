"""Seeded random adapters for transformers, in the key layouts of the published files."""

from __future__ import annotations

import torch
from torch import Tensor

from .transformers import Geometry

State = dict[str, Tensor]


class Draw:
    """Seeded random tensors."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator) / shape[-1] ** 0.5

    def vector(self, size: int, around: float = 0.0) -> Tensor:
        return around + 0.3 * torch.randn(size, generator=self._generator)

    def linear(self, name: str, outputs: int, inputs: int, bias: bool = True) -> State:
        made = {f"{name}.weight": self.matrix(outputs, inputs)}
        return made | ({f"{name}.bias": self.vector(outputs)} if bias else {})

    def norm(self, name: str, size: int, bias: bool = True) -> State:
        made = {f"{name}.weight": self.vector(size, 1.0)}
        return made | ({f"{name}.bias": self.vector(size)} if bias else {})


def xlabs(geometry: Geometry, embed_dim: int = 48, tokens: int = 4, seed: int = 3) -> State:
    """XLabs' flat file for the double blocks."""
    draw, dim = Draw(seed), geometry.text_dim
    state = draw.linear("ip_adapter_proj_model.proj", tokens * dim, embed_dim)
    state |= draw.norm("ip_adapter_proj_model.norm", dim)
    for number in range(geometry.double):
        place = f"double_blocks.{number}.processor.ip_adapter_double_stream"
        for part in "kv":
            state |= draw.linear(f"{place}_{part}_proj", geometry.width, dim)
    return state


def instantx(geometry: Geometry, embed_dim: int = 48, tokens: int = 8, seed: int = 3) -> State:
    """InstantX's file for all blocks, flat; a projector of two layers."""
    draw, dim = Draw(seed), geometry.text_dim
    state = draw.linear("image_proj.proj.0", 2 * embed_dim, embed_dim)
    state |= draw.linear("image_proj.proj.2", tokens * dim, 2 * embed_dim)
    state |= draw.norm("image_proj.norm", dim)
    for number in range(geometry.blocks):
        for part in ("to_k_ip", "to_v_ip"):
            state |= draw.linear(f"ip_adapter.{number}.{part}", geometry.width, dim, bias=False)
    return state
