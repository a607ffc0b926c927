"""Cosmos-Predict2 and Anima, which has its blocks: self-attention, then attention to the text."""

from __future__ import annotations

from .layout import BlockId, Layout, transformer_layers

CROSS = "cross"
# By number of blocks and width.
COSMOS_SIZES = {(28, 2048): "Cosmos-Predict2 2B", (36, 5120): "Cosmos-Predict2 14B"}


def cosmos_layout(width: int, heads: int, blocks: int) -> Layout:
    """The layout of such a transformer, named where its size is known."""
    name = COSMOS_SIZES.get((blocks, width), f"custom Cosmos ({blocks} blocks, width {width})")
    ids = [BlockId(CROSS, number, 0) for number in range(blocks)]
    return Layout(transformer_layers(ids, width, heads), 0, name, styles=None)
