"""Seeded random adapters for transformers, in the key layouts of the published files."""

from __future__ import annotations

from tools.transformer_adapters import SHAPES_ONLY, State, instantx, sd3, xlabs

from .transformers import FLUX_DEV, SD35_LARGE

__all__ = ["SHAPES_ONLY", "State", "instantx", "published", "sd3", "xlabs"]


def published() -> dict[str, State]:
    """The published files by the names of their families, shapes only."""
    return {
        "XLabs": xlabs(FLUX_DEV, 768, 16, SHAPES_ONLY),
        "InstantX": instantx(FLUX_DEV, 1152, 128, SHAPES_ONLY),
        "InstantX timed": sd3(SD35_LARGE, 1152, 64, SHAPES_ONLY, dim=1280),
    }
