"""The UNets: SD1.5, SD2, SDXL and the smaller ones made of it; widths and style layers."""

from __future__ import annotations

from collections.abc import Sequence

from .layout import Layer, Layout, StyleLayers

# up_blocks.0.attentions.1 is style, down_blocks.2.attentions.1 composition, in diffusers' words:
# https://github.com/instantX-research/InstantStyle/blob/6b40588e263c958653353ec24eb7eb990cfa3da7/README.md?plain=1#L34
_SDXL_STYLE = StyleLayers(frozenset({("output", 1)}), {("input", 8): 1.0})
_SD15_STYLE = StyleLayers(
    frozenset({*(("input", n) for n in (1, 2, 4, 5)), *(("output", n) for n in range(5, 12))}),
    {("input", 7): 0.25, ("input", 8): 1.0},
)


def unet_layout(layers: Sequence[Layer], context_dim: int) -> Layout:
    """The layout of a UNet with these cross-attentions, named where its widths are known.

    layers: in the order of an adapter's `to_k_ip` entries, which is the reference's: every `attn2`
    of the down path, then the up path, then the middle (diffusers' `attn_processors`), in
    ComfyUI's words input, output, middle.
    https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/loaders/unet.py#L626
    """
    name = base_name(context_dim, tuple(layer.width for layer in layers))
    return Layout(tuple(layers), context_dim, name, _style_layers(layers))


def _style_layers(layers: Sequence[Layer]) -> StyleLayers:
    """Style and composition blocks: SDXL's, SD1.5's, else the last input
    block against all outputs."""
    blocks = {layer.block[:2] for layer in layers}
    if {("input", 8), ("output", 1)} <= blocks and ("input", 1) not in blocks:
        return _SDXL_STYLE
    if {("input", 1), ("input", 8), ("output", 11)} <= blocks:
        return _SD15_STYLE
    inputs = sorted(number for name, number in blocks if name == "input")
    composition = {("input", inputs[-1]): 1.0} if inputs else {}
    style = {block for block in blocks if block[0] != "middle" and block not in composition}
    return StyleLayers(frozenset(style), composition)


def _widths(*runs: tuple[int, int]) -> tuple[int, ...]:
    return tuple(width for width, count in runs for _ in range(count))


_SD1 = _widths((320, 2), (640, 2), (1280, 5), (640, 3), (320, 3), (1280, 1))
_SDXL = _widths((640, 4), (1280, 50), (640, 6), (1280, 10))
# (width of the text context, widths of the cross-attention layers in id order): input, output,
# middle blocks.
BASES = {
    "SD1.5": (768, _SD1),
    "SD2": (1024, _SD1),
    "SDXL": (2048, _SDXL),
    "SSD-1B": (2048, _widths((640, 4), (1280, 26), (640, 4))),
    "Segmind Vega": (2048, _widths((640, 2), (1280, 10), (640, 3))),
    "KOALA 700M": (2048, _widths((640, 2), (1280, 15), (640, 4))),
    "KOALA 1B": (2048, _widths((640, 2), (1280, 18), (640, 4), (1280, 6))),
    "SDXL Refiner": (1280, _widths((768, 8), (1536, 20), (768, 12), (1536, 4))),
    "SDXS": (768, _widths((640, 1), (1280, 3), (640, 2))),
    "SDXS 0.9": (1024, _widths((320, 1), (640, 1), (1280, 3), (640, 2), (320, 2))),
}


def base_name(token_dim: int, layer_widths: tuple[int, ...]) -> str:
    """The base with these cross-attention layers, or a description of an unknown one."""
    for name, known in BASES.items():
        if known == (token_dim, layer_widths):
            return name
    return f"custom UNet ({len(layer_widths)} layers, width {token_dim})"
