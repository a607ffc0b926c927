"""Masks: where in the picture an adapter acts."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import Problem
from .rows import Crop, Extra


class Factor(NamedTuple):
    """What scales the image attention: mask (rows or 1, length, 1) or None, and a number."""

    mask: Tensor | None = None
    strength: float = 1.0

    def rows(self, part: slice) -> Tensor | None:
        """The mask of some rows."""
        return self.mask if self.mask is None or len(self.mask) == 1 else self.mask[part]

    def of(self, group: int, groups: int, rows: int) -> Tensor | None:
        """The mask of one group's queries: (rows of the group,)."""
        if self.mask is None:
            return None
        flat = self.mask.reshape(self.mask.shape[0], -1)
        if len(flat) == 1:
            return flat[0].repeat(rows // flat.shape[1])
        return flat.reshape(groups, -1)[group]


WHOLE = Factor()  # all of it, everywhere
_ALL = Crop(0.0, 0.0, 1.0, 1.0)

_log = logging.getLogger("ipadapter")
_WARNED = "warned that a mask cannot be placed"


def check_mask(mask: Tensor, name: str = "attn_mask") -> Tensor:
    """Return a mask as (masks, height, width), float, finite, clamped to 0..1.

    ValueError for anything else. `name` is the node's input, for messages.
    """
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[-1]):
        mask = mask.squeeze(1) if mask.shape[1] == 1 else mask.squeeze(-1)
    if mask.ndim != 3 or 0 in mask.shape:
        raise Problem.BAD_MASK(
            f"{name} has shape {tuple(mask.shape)}: expected (masks, height, width) with at "
            "least one pixel. Connect a MASK output (for an IMAGE use Convert Image to Mask first)."
        )
    mask = mask.float()
    if not bool(torch.isfinite(mask).all()):
        raise Problem.BAD_MASK(
            f"{name} holds NaN or infinite values: expected 0 (off) to 1 (on). Check the node "
            "that makes it."
        )
    return mask.clamp(0.0, 1.0)


def acting_mask(mask: Tensor) -> Tensor:
    """An attn_mask, checked; one line in the log if it is black everywhere."""
    checked = check_mask(mask)
    if not bool(checked.any()):
        _log.warning(
            "attn_mask is all black, so this image prompt does nothing. Load Image gives such a "
            "mask for a picture without transparency: leave attn_mask open to act everywhere."
        )
    return checked


def mask_rows(
    mask: Tensor,
    height: int,
    width: int,
    items: Sequence[int] | None = None,
    crops: Sequence[Crop | None] = (None,),
) -> Tensor:
    """Masks of a batch's rows on a block's grid, flattened: (crops * items, height * width, 1).

    mask: (masks, H, W); item i has mask i, or the last one; without items, each mask. crops: for
    each chunk of rows, the part of the picture that its latents show. A cell has the mean of the
    mask over its area, so that thin shapes stay and straight edges on the grid stay hard; where the
    grid is finer than the mask, the mask is interpolated.
    """
    wanted = mask if items is None else mask[[min(item, len(mask) - 1) for item in items]]
    made: dict[Crop | None, Tensor] = {
        crop: _resized(wanted, height, width, crop or _ALL).reshape(len(wanted), height * width, 1)
        for crop in set(crops)
    }
    return torch.cat([made[crop] for crop in crops])


def _resized(mask: Tensor, height: int, width: int, crop: Crop) -> Tensor:
    """(masks, H, W) -> (masks, height, width)"""
    if crop == _ALL and mask.shape[-2:] == (height, width):
        return mask
    down = _shares(mask.shape[1], height, crop.top, crop.bottom)
    across = _shares(mask.shape[2], width, crop.left, crop.right)
    sums = down.to(mask) @ (mask @ across.T.to(mask) / across.sum(1).to(mask))
    made = sums / down.sum(1, keepdim=True).to(mask)
    # The shares of a mean may add up to a little more or less than 1: a mask of ones stays one.
    low, high = mask.amin((1, 2), keepdim=True), mask.amax((1, 2), keepdim=True)
    return made.clamp(low, high)


def _shares(pixels: int, cells: int, start: float, end: float) -> Tensor:
    """How much each cell takes of each pixel along one side, (cells, pixels), float64: cells of the
    part from `start` to `end`, fractions of the whole side.

    A cell larger than a pixel takes what it covers; a smaller one lies between two pixels' middles.
    """
    length, pixel = (end - start) * pixels, torch.arange(pixels, dtype=torch.float64)
    edges = start * pixels + torch.arange(cells + 1, dtype=torch.float64) * length / cells
    edges = edges.round(decimals=9)  # fractions of a crop that means whole pixels
    first, last = edges[:-1, None], edges[1:, None]
    if length > cells:
        return (torch.minimum(last, pixel + 1) - torch.maximum(first, pixel)).clamp(min=0.0)
    middle = ((first + last) / 2 - 0.5).clamp(0, pixels - 1)
    return (1.0 - (middle - pixel).abs()).clamp(min=0.0)


def block_grid(length: int, extra: Extra) -> tuple[int, int]:
    """Height and width of a block's grid: the host's `activations_shape`, else
    from the latent's aspect."""
    shape = extra.get("activations_shape")
    if shape is not None and shape[-2] * shape[-1] == length:
        return int(shape[-2]), int(shape[-1])
    original = extra.get("original_shape")
    if original is not None:
        height, width = original[-2], original[-1]
        for _ in range(8):
            if height * width == length:
                return int(height), int(width)
            height, width = -(-height // 2), -(-width // 2)
    raise Problem.OTHER_PACK(
        f"attn_mask cannot be placed: a block has {length} positions and the caller gives neither "
        "activations_shape nor a fitting original_shape. Remove the mask, or sample with ComfyUI's "
        "own samplers."
    )


def warn_unplaced(run: MutableMapping[Any, Any]) -> None:
    """Say once per sampling run that a mask is stretched over each part of the picture."""
    if _WARNED not in run:
        run[_WARNED] = True
        _log.warning(
            "attn_mask: this sampling works on parts of the picture (tiles) and does not say where "
            "they lie, so the whole mask is stretched over each part. Sample without tiling, or "
            "without the mask, for a mask in its place."
        )
