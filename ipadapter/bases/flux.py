"""Flux.1 and what has its blocks: double ones, where text and picture have weights of their own,
then single ones, where they have the same."""

from __future__ import annotations

from .layout import BlockId, Layout, transformer_layers

FLUX, CHROMA = "Flux.1", "Chroma"
DOUBLE, SINGLE = "double", "single"


def flux_layout(name: str, width: int, heads: int, double: int, single: int) -> Layout:
    """The layout of such a transformer. double, single: how many blocks of each kind it has."""
    blocks = [BlockId(DOUBLE, number, 0) for number in range(double)]
    blocks += [BlockId(SINGLE, number, 0) for number in range(single)]
    return Layout(transformer_layers(blocks, width, heads), 0, name, styles=None)
