"""Looking closer than one encoder input: tiles with masks, and crops merged back into one input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import Problem
from .images import EncoderInput, Interpolation, as_rgb, crop_square, resize, sharpen

# Between these proportions (height / width) an image counts as square.
SQUARE_RATIOS = (0.75, 1.33)
MAX_TILES = 4
_USUAL = EncoderInput()
LONGEST = (
    16  # sides: what of a picture is cut into so many tiles; the rest of its length is left out
)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Square cut-outs of an image and where each of them acts.

    tiles: (tiles, batch, size, size, 3). masks: (tiles, height, width), one rectangle of ones each,
    in the proportions of the tiled picture. The rectangles share no pixel and cover all of it, so
    that no place gets the adapter twice where neighbouring tiles overlap.
    """

    tiles: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.tiles)


def tile_image(image: Tensor, tile_size: int = 256, sharpening: float = 0.0) -> Tiles:
    """Cut (batch, height, width, channels) into tiles of `tile_size`, sharpened if asked.

    A nearly square image loses its edges and gives 2 x 2 tiles. An elongated one gives a row or a
    column of up to four, as many as its short side fits into the long one, rounded up, evenly
    spread (overlapping; with gaps beyond a proportion of 4 : 1; beyond 16 : 1 only the middle).
    """
    image = _limit_elongation(as_rgb(image))
    height, width = image.shape[1:3]
    if SQUARE_RATIOS[0] < height / width < SQUARE_RATIOS[1]:
        side = 2 * tile_size
        image = resize(crop_square(image), side, side, Interpolation.LANCZOS)
    elif height > width:
        image = resize(image, tile_size * height // width, tile_size, Interpolation.LANCZOS)
    else:
        image = resize(image, tile_size, tile_size * width // height, Interpolation.LANCZOS)
    height, width = image.shape[1:3]
    places = [(y, x) for y in _spread(height, tile_size) for x in _spread(width, tile_size)]
    tiles = torch.stack([image[:, y : y + tile_size, x : x + tile_size] for y, x in places])
    masks = _partition(height, tile_size)[:, None, :, None] * _partition(width, tile_size)[:, None]
    return Tiles(sharpen(tiles.flatten(0, 1), sharpening).view_as(tiles), masks.flatten(0, 1))


def enhancer_crops(image: Tensor, tiles: int, form: EncoderInput = _USUAL) -> Tensor:
    """What the encoder sees of the image at `tiles` times its size, cut into tiles x tiles.

    Returns (batch * tiles * tiles, size, size, 3): image by image, row by row.
    """
    if tiles < 1:
        raise Problem.BAD_VALUE(f"enhance_tiles: expected 1 or more, got {tiles}.")
    size, square = form.size, form.square(image, tiles)
    grid = square.unflatten(1, (tiles, size)).unflatten(3, (tiles, size))
    return grid.transpose(2, 3).flatten(0, 2).contiguous()


def merge_crops(features: Tensor, tiles: int) -> Tensor:
    """Encoder features of `enhancer_crops` -> features as of one image.

    Hidden states (batch * tiles * tiles, tokens, dim) keep their token count: the patches of all
    crops are laid out as one large grid and averaged back to the encoder's own; the class token,
    where the encoder has one, is averaged. Pooled (batch * tiles * tiles, dim) is averaged.
    """
    crops = tiles * tiles
    if len(features) == 0 or len(features) % crops:
        raise ValueError(
            f"Expected features of {tiles} x {tiles} crops per image, so a multiple of {crops}, "
            f"got {len(features)}."
        )
    features = features.unflatten(0, (-1, crops))
    if features.ndim == 3:
        return features.mean(1)
    leading, side = _patch_grid(features.shape[2])
    average = features[:, :, :leading].mean(1)
    patches = features[:, :, leading:].unflatten(2, (side, side)).unflatten(1, (tiles, tiles))
    large = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    pooled = F.avg_pool2d(large, tiles).flatten(2).transpose(1, 2)
    return torch.cat([average, pooled], dim=1)


def enhance(full: Tensor, crops: Tensor, tiles: int, ratio: float, in_step: bool = False) -> Tensor:
    """Features (batch, ...) of whole images and of their crops -> enhanced features.

    A batch is blended, `ratio` of the whole and the rest of the detail. A single image becomes two
    entries, the whole scaled by `ratio` and the detail, for combine_embeds to join; blended too if
    entries belong to latents (`in_step`).
    """
    detail = merge_crops(crops, tiles)
    if full.shape != detail.shape:
        raise ValueError(
            f"Expected features of the same images, got {tuple(full.shape)} for the whole images "
            f"and {tuple(detail.shape)} for their crops."
        )
    if in_step or len(full) > 1:
        return torch.lerp(detail, full, ratio)
    return torch.cat([full * ratio, detail])


def _limit_elongation(image: Tensor) -> Tensor:
    height, width = image.shape[1:3]
    limit = LONGEST * min(height, width)
    top, left = max(0, height - limit) // 2, max(0, width - limit) // 2
    return image[:, top : top + limit, left : left + limit]


def _spread(length: int, tile_size: int) -> list[int]:
    """Starts of the tiles along one side: from end to end, evenly."""
    count = min(MAX_TILES, math.ceil(length / tile_size))
    if count == 1:
        return [0]
    return [index * (length - tile_size) // (count - 1) for index in range(count)]


def _partition(length: int, tile_size: int) -> Tensor:
    """(tiles, length) of ones and zeros: each position belongs to the nearest tile's centre."""
    starts = torch.tensor(_spread(length, tile_size))
    ends = torch.div(starts[1:] + starts[:-1] + tile_size, 2, rounding_mode="floor")
    owner = torch.bucketize(torch.arange(length), ends, right=True)
    return F.one_hot(owner, len(starts)).T.to(torch.float32)


def _patch_grid(tokens: int) -> tuple[int, int]:
    """(class tokens, patches per side) of an encoder that returns this many tokens."""
    for leading in (0, 1):
        side = math.isqrt(tokens - leading)
        if side > 0 and side * side == tokens - leading:
            return leading, side
    raise ValueError(
        f"Expected a square grid of patches with or without a class token, got {tokens} tokens."
    )
