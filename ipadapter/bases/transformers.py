"""Which transformer an adapter is made for, told by its layers."""

from __future__ import annotations

from collections.abc import Sequence

from .cosmos import COSMOS_SIZES
from .sd3 import SD3_SIZES

_SIZES = {
    **{
        (blocks, width): name
        for (blocks, width, normalised), name in SD3_SIZES.items()
        if normalised
    },
    **COSMOS_SIZES,
}


def transformer_name(widths: Sequence[int]) -> str:
    """The base with layers of these widths, or a description of an unknown one."""
    size = len(widths), widths[0] if widths else 0
    return _SIZES.get(size, f"custom transformer ({size[0]} blocks, width {size[1]})")
