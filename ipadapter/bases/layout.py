"""Where a base attends to text: its layers, their widths and order, which of them carry style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..errors import Problem


class BlockId(NamedTuple):
    """ComfyUI's name of one transformer block: `("input", 4, 1)` in a UNet, or `("double", 4, 0)`
    in a transformer."""

    name: str
    number: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - not tuple.index


@dataclass(frozen=True)
class Layer:
    """One attention that an adapter acts beside: a text cross-attention of a UNet, or that of a
    block in a transformer.

    transformer: the `t` of weight types: in a UNet the index of its SpatialTransformer in execution
    order (input, middle, output), in a transformer that of the block.
    width: heads x dim_head, the width of query, key and value. depth: transformer blocks in its
    SpatialTransformer. heads: 0 where the attention itself tells. part: input, middle or output
    third of a transformer; a UNet's blocks are called so.
    """

    block: BlockId
    transformer: int
    width: int
    depth: int = 1
    heads: int = 0
    part: str = ""


@dataclass(frozen=True)
class StyleLayers:
    """Blocks that carry style and composition (InstantStyle, arXiv 2404.02733; SD1.5 as
    found by its users)."""

    style: frozenset[tuple[str, int]]
    composition: Mapping[tuple[str, int], float] = field(
        default_factory=dict[tuple[str, int], float]
    )


NO_STYLES = StyleLayers(frozenset())
PARTS = ("input", "middle", "output")


@dataclass(frozen=True)
class Layout:
    """Every attention of a base that an adapter acts in, in the order of an adapter's layers.

    context_dim: the width that tokens must have; 0 where an adapter brings its own. styles: None
    where nobody has found which layers carry style.
    """

    layers: tuple[Layer, ...]
    context_dim: int
    name: str = "a UNet"
    styles: StyleLayers | None = NO_STYLES

    @property
    def transformers(self) -> int:
        """Number of SpatialTransformers: 16 for SD1.5, 11 for SDXL; of blocks in a transformer."""
        return len({layer.transformer for layer in self.layers})

    def part_of(self, layer: Layer) -> str:
        """Input, middle or output: by name in a UNet, else the third of the way that it lies in."""
        name = layer.block.name
        return name if name in PARTS else PARTS[len(PARTS) * layer.transformer // self.transformers]

    def only(self, names: Sequence[str]) -> Layout:
        """The layers in blocks of these names."""
        return replace(self, layers=tuple(one for one in self.layers if one.block.name in names))

    def fits(self, widths: Sequence[int], token_dim: int) -> bool:
        """Whether an adapter has layers of these widths, for tokens of that width."""
        found = tuple(layer.width for layer in self.layers)
        return tuple(widths) == found and self.context_dim in (0, token_dim)

    def check(self, widths: Sequence[int], token_dim: int, adapter: str, base: str) -> None:
        """Raise ValueError unless an adapter with these layer widths and token
        width fits this base.

        adapter, base: its file name and the base that it was made for, for the message.
        """
        if not self.fits(widths, token_dim):
            raise self.misfit(widths, token_dim, adapter, base)

    def misfit(self, widths: Sequence[int], token_dim: int, adapter: str, base: str) -> ValueError:
        """The error that says what an adapter is made for and what this is."""
        found = tuple(layer.width for layer in self.layers)
        return Problem.WRONG_BASE(
            f"{adapter} does not fit this MODEL: it is made for {base} "
            f"({_describe(widths, token_dim if self.context_dim else 0)}), the MODEL is "
            f"{self.name} ({_describe(found, self.context_dim)}). "
            f"Load an adapter made for {self.name}, or a checkpoint of {base}."
        )


def transformer_layers(blocks: Sequence[BlockId], width: int, heads: int) -> tuple[Layer, ...]:
    """The layers of a transformer, all alike, in order."""
    parts = (PARTS[len(PARTS) * place // len(blocks)] for place in range(len(blocks)))
    return tuple(
        Layer(block, place, width, heads=heads, part=part)
        for (place, block), part in zip(enumerate(blocks), parts, strict=True)
    )


def _describe(widths: Sequence[int], token_dim: int) -> str:
    if not widths:
        return "no layers that adapters act in"
    sizes = ", ".join(str(width) for width in sorted(set(widths)))
    text = f" and cross-attention width {token_dim}" if token_dim else ""
    return f"{len(widths)} layers of width {sizes}{text}"
