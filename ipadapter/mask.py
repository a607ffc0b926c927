"""Masks: where in the picture an adapter acts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def check_mask(mask: Tensor) -> Tensor:
    """Return a mask as (masks, height, width), float, finite, clamped to 0..1. ValueError for
    anything else."""
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[-1]):
        mask = mask.squeeze(1) if mask.shape[1] == 1 else mask.squeeze(-1)
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(
            f"attn_mask has shape {tuple(mask.shape)}: expected (masks, height, width) with at "
            f"least one pixel. "
            "Connect a MASK output (for an IMAGE use Convert Image to Mask first)."
        )
    mask = mask.float()
    if not bool(torch.isfinite(mask).all()):
        raise ValueError(
            "attn_mask holds NaN or infinite values: expected 0 (off) to 1 (on). Check the node "
            "that makes it."
        )
    return mask.clamp(0.0, 1.0)


def mask_rows(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize (masks, H, W) to a block's grid and flatten: (masks, height * width, 1).

    Bilinear without antialias, as the reference's masks behave on straight edges; soft edges stay
    soft.
    """
    if mask.shape[-2:] != (height, width):
        mask = functional.interpolate(
            mask.unsqueeze(1), size=(height, width), mode="bilinear"
        ).squeeze(1)
    return mask.reshape(mask.shape[0], height * width, 1)
