"""Where a base attends to text: its layers, their widths and order, which of them carry style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import Problem


class BlockId(NamedTuple):
    """ComfyUI's name of one transformer block: `("input", 4, 1)`."""

    name: str
    number: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - not tuple.index


@dataclass(frozen=True)
class Layer:
    """One text cross-attention of a UNet.

    transformer: index of its SpatialTransformer in execution order (input, middle, output), the `t`
    of weight types.
    width: heads x dim_head, the width of query, key and value. depth: transformer blocks in its
    SpatialTransformer.
    """

    block: BlockId
    transformer: int
    width: int
    depth: int = 1


@dataclass(frozen=True)
class StyleLayers:
    """Blocks that carry style and composition (InstantStyle, arXiv 2404.02733; SD1.5 as
    found by its users)."""

    style: frozenset[tuple[str, int]]
    composition: Mapping[tuple[str, int], float] = field(
        default_factory=dict[tuple[str, int], float]
    )


NO_STYLES = StyleLayers(frozenset())


@dataclass(frozen=True)
class Layout:
    """Every attention of a base that an adapter acts in, in the order of an adapter's layers."""

    layers: tuple[Layer, ...]
    context_dim: int
    name: str = "a UNet"
    styles: StyleLayers = NO_STYLES

    @property
    def transformers(self) -> int:
        """Number of SpatialTransformers: 16 for SD1.5, 11 for SDXL."""
        return len({layer.transformer for layer in self.layers})

    def check(self, widths: Sequence[int], token_dim: int, adapter: str, base: str) -> None:
        """Raise ValueError unless an adapter with these layer widths and token
        width fits this UNet.

        adapter, base: its file name and the base that it was made for, for the message.
        """
        found = tuple(layer.width for layer in self.layers)
        if tuple(widths) == found and token_dim == self.context_dim:
            return
        raise Problem.WRONG_BASE(
            f"{adapter} does not fit this MODEL: it is made for {base} "
            f"({_describe(widths, token_dim)}), the MODEL is {self.name} "
            f"({_describe(found, self.context_dim)}). "
            f"Load an adapter made for {self.name}, or a checkpoint of {base}."
        )


def _describe(widths: Sequence[int], token_dim: int) -> str:
    sizes = ", ".join(str(width) for width in sorted(set(widths)))
    return f"{len(widths)} layers of width {sizes} and cross-attention width {token_dim}"
