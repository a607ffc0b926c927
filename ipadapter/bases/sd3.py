"""SD3 and SD3.5: transformers of joint blocks, where text and picture have weights of their own."""

from __future__ import annotations

from .layout import BlockId, Layout, transformer_layers

JOINT = "joint"
LARGE = "SD3.5-Large"
HEAD_DIM = 64
_NAMES = {(38, 2432): LARGE, (24, 1536): "SD3-Medium or SD3.5-Medium"}


def sd3_layout(width: int, blocks: int) -> Layout:
    """The layout of such a transformer, named where its size is known."""
    name = _NAMES.get((blocks, width), f"custom SD3 ({blocks} blocks, width {width})")
    ids = [BlockId(JOINT, number, 0) for number in range(blocks)]
    return Layout(transformer_layers(ids, width, width // HEAD_DIM), 0, name, styles=None)
