"""SD3 and SD3.5: transformers of joint blocks, where text and picture have weights of their own."""

from __future__ import annotations

from .layout import BlockId, Layout, transformer_layers

JOINT = "joint"
LARGE = "SD3.5-Large"
HEAD_DIM = 64
# By number of blocks, width, and whether queries and keys are normalised.
SD3_SIZES = {
    (38, 2432, True): LARGE,
    (24, 1536, True): "SD3.5-Medium",
    (24, 1536, False): "SD3-Medium",
}


def sd3_layout(width: int, blocks: int, normalised: bool) -> Layout:
    """The layout of such a transformer, named where its size is known. normalised: whether it
    normalises queries and keys; where it does not, no known adapter can act."""
    name = SD3_SIZES.get(
        (blocks, width, normalised), f"custom SD3 ({blocks} blocks, width {width})"
    )
    ids = [BlockId(JOINT, number, 0) for number in range(blocks if normalised else 0)]
    return Layout(transformer_layers(ids, width, width // HEAD_DIM), 0, name, styles=None)
