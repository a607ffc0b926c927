"""Seeded random adapters for transformers, in the key layouts of the published files."""

from __future__ import annotations

from tools.transformer_adapters import (
    SHAPES_ONLY,
    Draw,
    State,
    instantx,
    resampler_ends,
    resampler_layer,
    sd3,
    xlabs,
)

from .transformers import COSMOS_2B, FLUX_DEV, SD35_LARGE, Geometry

__all__ = ["SHAPES_ONLY", "State", "instantx", "normed", "published", "sd3", "xlabs"]


def normed(
    geometry: Geometry, embed_dim: int = 48, tokens: int = 4, seed: int = 3, dim: int = 0
) -> State:
    """A standard adapter as it is trained here for transformers that normalise their keys. dim: of
    its tokens; 0 for the text's."""
    draw, dim = Draw(seed), dim or geometry.text_dim
    state = draw.linear("image_proj.proj", tokens * dim, embed_dim)
    state |= draw.norm("image_proj.norm", dim)
    for number in range(geometry.blocks):
        for part in ("to_k_ip", "to_v_ip"):
            state |= draw.linear(f"ip_adapter.{number}.{part}", geometry.width, dim, bias=False)
        state |= draw.norm(f"ip_adapter.{number}.norm_ip_k", geometry.head_dim, bias=False)
    return state


def normed_plus(geometry: Geometry, embed_dim: int = 48, tokens: int = 8, dim: int = 64) -> State:
    """The same with a resampler, shapes only."""
    draw = Draw(SHAPES_ONLY)
    state = resampler_ends(draw, tokens, (embed_dim, dim, geometry.text_dim))
    state |= resampler_layer(draw, 0, dim)
    layers = normed(geometry, embed_dim, seed=SHAPES_ONLY)
    return state | {key: value for key, value in layers.items() if key.startswith("ip_adapter")}


def published() -> dict[str, State]:
    """The published files by the names of their families, and those that are trained here; of all
    only the shapes."""
    return {
        "XLabs": xlabs(FLUX_DEV, 768, 16, SHAPES_ONLY),
        "InstantX": instantx(FLUX_DEV, 1152, 128, SHAPES_ONLY),
        "InstantX timed": sd3(SD35_LARGE, 1152, 64, SHAPES_ONLY, dim=1280),
        "standard for transformers": normed(COSMOS_2B, 1024, 4, SHAPES_ONLY),
        "Plus for transformers": normed_plus(COSMOS_2B, 1280, 16, 1024),
    }
