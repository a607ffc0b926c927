"""Noise that makes an image prompt vaguer, or a negative image from a positive one."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import Problem
from .images import CropPosition, Interpolation, as_rgb, prep_image

SIZE = 224
SEED_RANGE = 1_000_000_007

# The shuffle's displacement, in pixels, and how far its noise brightens the result.
DISPLACEMENT = 75.0
SMOOTHNESS = 3.5
BRIGHTENING = 0.75


class NoiseType(str, Enum):
    """What happens to the pixels."""

    FADE = "fade"
    DISSOLVE = "dissolve"
    GAUSSIAN = "gaussian"
    SHUFFLE = "shuffle"


def noise_image(
    kind: NoiseType,
    strength: float,
    blur: int = 0,
    image: Tensor | None = None,
    seed: int | None = None,
) -> Tensor:
    """Noise (batch, 224, 224, 3) made from an image, or from black where there is none.

    Without a seed it follows from the image's content, so that the same image always gets the same
    noise. The process-wide random state is neither read nor changed. `blur` is the width of a
    Gaussian kernel in pixels, made odd.
    """
    if not 0.0 <= strength <= 1.0:
        raise Problem.BAD_VALUE(f"strength: expected 0 to 1, got {strength}.")
    if blur < 0:
        raise Problem.BAD_VALUE(f"blur: expected 0 or more pixels, got {blur}.")
    if image is None:
        square = torch.zeros(1, SIZE, SIZE, 3)
    else:
        square = prep_image(image, Interpolation.LANCZOS, CropPosition.CENTER, size=SIZE)
    generator = torch.Generator().manual_seed(content_seed(square) if seed is None else seed)
    noisy = _METHODS[kind](square.cpu(), strength, generator).clamp(0.0, 1.0)
    if blur > 0:
        kernel = blur | 1
        noisy = _blur(noisy, kernel, 0.3 * ((kernel - 1) * 0.5 - 1.0) + 0.8)
    return noisy.to(square.device)


def content_seed(image: Tensor) -> int:
    """A seed from the pixels of (batch, height, width, channels): their sum."""
    return int(as_rgb(image).sum(dtype=torch.float64)) % SEED_RANGE


def _fade(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return torch.lerp(image, _uniform(image, generator), strength)


def _dissolve(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    replaced = _uniform(image, generator) < strength
    return torch.where(replaced, _uniform(image, generator), image)


def _gaussian(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return image + strength * _normal(image, generator)


def _shuffle(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Stretch the image like rubber, turn it upside down, brighten it at random."""
    stretched = _elastic(image, SMOOTHNESS * (1.0 - strength), generator).flip(1, 2)
    return torch.lerp(
        stretched,
        torch.ones_like(stretched),
        BRIGHTENING * strength * _normal(image, generator),
    )


_METHODS: dict[NoiseType, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    NoiseType.FADE: _fade,
    NoiseType.DISSOLVE: _dissolve,
    NoiseType.GAUSSIAN: _gaussian,
    NoiseType.SHUFFLE: _shuffle,
}


def _uniform(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(image.shape, generator=generator)


def _normal(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(image.shape, generator=generator)


def _elastic(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Move every pixel of (batch, height, width, channels) along one smooth random field."""
    batch, height, width, _ = image.shape
    field = 2.0 * torch.rand((1, height, width, 2), generator=generator) - 1.0
    if sigma > 0.0:
        field = _blur(field, math.floor(8.0 * sigma + 1.0) | 1, sigma)
    # grid_sample counts the image as 2 wide and 2 high.
    field = field * DISPLACEMENT / torch.tensor([width, height])
    ys = torch.arange(height) * 2.0 + 1.0 - height
    xs = torch.arange(width) * 2.0 + 1.0 - width
    identity = torch.stack(torch.meshgrid(xs / width, ys / height, indexing="xy"), dim=-1)
    grid = (identity + field).expand(batch, -1, -1, -1)
    return F.grid_sample(image.movedim(-1, 1), grid, align_corners=False).movedim(1, -1)


def _blur(image: Tensor, kernel: int, sigma: float) -> Tensor:
    """Gaussian blur of (batch, height, width, channels), reflecting at the edges."""
    positions = torch.arange(kernel, dtype=torch.float32) - (kernel - 1) / 2
    weights = torch.softmax(-0.5 * (positions / sigma) ** 2, dim=0)
    channels = image.shape[-1]
    padded = F.pad(image.movedim(-1, 1), [kernel // 2] * 4, mode="reflect")
    rows = weights.view(1, 1, 1, kernel).expand(channels, -1, -1, -1)
    blurred = F.conv2d(padded, rows, groups=channels)
    return F.conv2d(blurred, rows.transpose(2, 3), groups=channels).movedim(1, -1)
