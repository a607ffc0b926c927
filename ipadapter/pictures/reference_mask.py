"""Which part of a reference picture an adapter reads: an encoder's patches inside a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.mask import check_mask
from ..errors import Problem


def keep_patches(
    mask: Tensor, size: tuple[int, int], patches: int, images: int = 1, whole: bool = False
) -> Tensor:
    """Patches of an encoder that lie inside a mask, at least half of each: (images, patches), bool.

    mask: (masks, H, W) over pictures of height and width `size`, stretched to them; mask i belongs
    to picture i, the last one to all later ones. The encoder sees the centre square only, or the
    `whole` picture. A leading class token, which sums up the whole picture, is dropped with the
    first patch that is.
    Raises ValueError if nothing is left.
    """
    side = math.isqrt(patches)
    if side * side not in (patches, patches - 1):
        raise Problem.BAD_MASK(
            f"A reference mask needs an encoder with a square of patches, this one gives {patches} "
            "tokens. Leave image_mask open with this encoder."
        )
    mask = check_mask(mask, "image_mask")
    check_covers(mask, size, whole=whole)
    seen = mask[:, None] if whole else _square(mask, size)
    covered = functional.adaptive_avg_pool2d(seen, side).flatten(1)
    inside = covered >= covered.amax(dim=1, keepdim=True).clamp(max=0.5)
    if side * side < patches:
        inside = torch.cat((inside.all(dim=1, keepdim=True), inside), dim=1)
    return inside[torch.arange(images).clamp(max=len(inside) - 1)]


def check_covers(
    mask: Tensor, size: tuple[int, int], name: str = "image_mask", whole: bool = False
) -> None:
    """ValueError if one of the masks (masks, H, W) leaves nothing of a picture of height and
    width `size`.

    whole: what is read lies anywhere in the picture (faces, or an encoder that sees all of it),
    else in its centre square.
    """
    seen = mask[:, None] if whole else _square(mask, size)
    if bool((seen.amax(dim=(1, 2, 3)) > 1e-6).all()):
        return
    where = "" if whole else " inside the picture's centre square, which is what the encoder sees"
    raise Problem.BAD_MASK(
        f"{name} leaves nothing of the reference picture: expected some white{where}. Check that "
        "the mask is not inverted (Load Image gives an all-black one for a picture without "
        "transparency), or crop the picture with Prep Image For ClipVision first."
    )


def _square(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of masks (masks, H, W) over a picture's centre square: (masks, 1, edge, edge)."""
    whole = functional.interpolate(mask[:, None], size=size, mode="area")
    edge = min(size)
    top, left = (size[0] - edge) // 2, (size[1] - edge) // 2
    return whole[..., top : top + edge, left : left + edge]
