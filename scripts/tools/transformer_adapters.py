"""Seeded random adapters for transformers, in the key layouts of the published files."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]
SHAPES_ONLY = -1  # in place of a seed: tensors on the meta device


class Geometry(Protocol):
    """The shape of a transformer. double: blocks that keep text apart; blocks: all of them.
    text_dim: width of image tokens, those of text states in published adapters."""

    @property
    def width(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def double(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def text_dim(self) -> int: ...


class Draw:
    """Seeded random tensors."""

    def __init__(self, seed: int) -> None:
        real = seed != SHAPES_ONLY
        self._generator = torch.Generator().manual_seed(seed) if real else None

    def _random(self, *shape: int) -> Tensor:
        if self._generator is None:
            return torch.empty(*shape, device="meta")
        return torch.randn(*shape, generator=self._generator)

    def matrix(self, *shape: int) -> Tensor:
        return self._scaled(shape[-1] ** -0.5, *shape)

    def vector(self, size: int, around: float = 0.0) -> Tensor:
        return self._scaled(0.3, size, around=around)

    def _scaled(self, scale: float, *shape: int, around: float = 0.0) -> Tensor:
        made = self._random(*shape)
        # The first sum on the meta device takes seconds, of imports.
        return made if made.is_meta else around + scale * made

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


def resampler_ends(draw: Draw, tokens: int, widths: tuple[int, int, int]) -> State:
    """What a resampler has beside its layers. widths: of the encoder, inside, and of its tokens."""
    embed_dim, dim, width = widths
    state = {"image_proj.latents": draw.matrix(1, tokens, dim)}
    state |= draw.linear("image_proj.proj_in", dim, embed_dim)
    state |= draw.linear("image_proj.proj_out", width, dim)
    return state | draw.norm("image_proj.norm_out", width)


def resampler_layer(draw: Draw, number: int, dim: int) -> State:
    """Attention and feed-forward of one layer of a resampler."""
    attention, feed_forward = (f"image_proj.layers.{number}.{part}" for part in (0, 1))
    state = draw.norm(f"{attention}.norm1", dim) | draw.norm(f"{attention}.norm2", dim)
    state |= draw.linear(f"{attention}.to_q", dim, dim, bias=False)
    state |= draw.linear(f"{attention}.to_kv", 2 * dim, dim, bias=False)
    state |= draw.linear(f"{attention}.to_out", dim, dim, bias=False)
    state |= draw.norm(f"{feed_forward}.0", dim)
    state |= draw.linear(f"{feed_forward}.1", 4 * dim, dim, bias=False)
    return state | draw.linear(f"{feed_forward}.3", dim, 4 * dim, bias=False)


def sd3(
    geometry: Geometry, embed_dim: int = 48, tokens: int = 8, seed: int = 3, dim: int = 128
) -> State:
    """InstantX's file for SD3.5-Large, flat: a projector of width `dim` and layers that depend on
    the timestep."""
    draw, waves = Draw(seed), dim // 4
    state = resampler_ends(draw, tokens, (embed_dim, dim, geometry.width))
    state |= draw.linear("image_proj.time_embedding.linear_1", dim, waves)
    state |= draw.linear("image_proj.time_embedding.linear_2", dim, dim)
    for layer in range(4):
        state |= resampler_layer(draw, layer, dim)
        state |= draw.linear(f"image_proj.layers.{layer}.2.1", 4 * dim, dim)
    for number in range(geometry.blocks):
        place, width = f"ip_adapter.{number}", geometry.width
        state |= draw.linear(f"{place}.norm_ip.linear", 2 * width, dim)
        state |= draw.linear(f"{place}.to_k_ip", width, width, bias=False)
        state |= draw.linear(f"{place}.to_v_ip", width, width, bias=False)
        for name in ("norm_q", "norm_k", "norm_ip_k"):
            state |= draw.norm(f"{place}.{name}", geometry.head_dim, bias=False)
    return state
