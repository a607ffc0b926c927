"""Cross-attention layouts of known UNets, written down block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ipadapter.attention.folding import LayerKeyValue, LayerRule
from ipadapter.attention.weight_types import Weighting, WeightType
from ipadapter.bases.layout import BlockId, Layer, Layout
from ipadapter.bases.unet import unet_layout

# (block, number) -> (width, transformer blocks), in execution order: input, middle, output.
Blocks = Mapping[tuple[str, int], tuple[int, int]]

SD15_BLOCKS: Blocks = {
    **{("input", n): ((320, 640, 1280)[n // 3], 1) for n in (1, 2, 4, 5, 7, 8)},
    ("middle", 0): (1280, 1),
    **{("output", 3 + n): ((1280, 640, 320)[n // 3], 1) for n in range(9)},
}
SDXL_BLOCKS: Blocks = {
    **{("input", n): (640, 2) for n in (4, 5)},
    **{("input", n): (1280, 10) for n in (7, 8)},
    ("middle", 0): (1280, 10),
    **{("output", n): (1280, 10) for n in (0, 1, 2)},
    **{("output", n): (640, 2) for n in (3, 4, 5)},
}
SSD1B_BLOCKS: Blocks = {
    **{("input", n): (640, 2) for n in (4, 5)},
    **{("input", n): (1280, 4) for n in (7, 8)},
    ("output", 0): (1280, 4),
    ("output", 1): (1280, 4),
    ("output", 2): (1280, 10),
    ("output", 3): (640, 2),
    ("output", 4): (640, 1),
    ("output", 5): (640, 1),
}
VEGA_BLOCKS: Blocks = {
    **{("input", n): (640, 1) for n in (4, 5)},
    **{("input", n): (1280, 2) for n in (7, 8)},
    **{("output", n): (1280, 2) for n in (0, 1, 2)},
    **{("output", n): (640, 1) for n in (3, 4, 5)},
}
FOUR_BLOCKS: Blocks = {
    ("input", 1): (320, 1),
    ("middle", 0): (320, 1),
    ("output", 0): (320, 1),
    ("output", 1): (320, 1),
}


def layout_of(blocks: Blocks, context_dim: int, name: str) -> Layout:
    """A layout in adapter order (input, output, middle)."""
    transformer = {block: t for t, block in enumerate(blocks)}
    layers = [
        Layer(BlockId(part, number, index), transformer[(part, number)], width, depth)
        for wanted in ("input", "output", "middle")
        for (part, number), (width, depth) in blocks.items()
        if part == wanted
        for index in range(depth)
    ]
    return replace(unet_layout(layers, context_dim), name=name)


def rules_of(
    layout: Layout,
    kind: WeightType,
    weight: float = 1.0,
    composition: float | None = None,
    boost: float | None = None,
    factors: Mapping[int, float] | None = None,
) -> tuple[LayerRule, ...]:
    """The rule of every layer for one weight."""
    numbers = {"composition": composition, "boost": boost, "layers": factors}
    return tuple(rule for (rule,) in Weighting((weight,), kind, **numbers).rules(layout))


SD15 = layout_of(SD15_BLOCKS, 768, "SD1.5")
SDXL = layout_of(SDXL_BLOCKS, 2048, "SDXL")
SSD1B = layout_of(SSD1B_BLOCKS, 2048, "SSD-1B")
VEGA = layout_of(VEGA_BLOCKS, 2048, "Segmind Vega")
FOUR = layout_of(FOUR_BLOCKS, 768, "custom UNet (4 layers, width 768)")


def plain(layer: object) -> LayerKeyValue:
    """Keys and values of a layer that does not change over time, as those of every UNet."""
    assert isinstance(layer, LayerKeyValue)
    return layer
