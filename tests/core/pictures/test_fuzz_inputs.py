"""Any picture and any mask: the right shape, finite, in bounded time and memory.

IMAGE_PROMPT_FUZZ=50 draws fifty times as many cases.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references.bounds import Bound, cases
from torch import Tensor

from ipadapter.attention.mask import check_mask, mask_rows
from ipadapter.pictures.images import (
    CropPosition,
    EncoderInput,
    Fit,
    Interpolation,
    blank_outside,
    clip_image,
    prep_image,
)
from ipadapter.pictures.tiles import enhancer_crops, tile_image

SECONDS = 12.0  # of processor time, for the largest pictures on a slow machine
SLACK = 64 << 20  # bytes beside what grows with the picture
COPIES = 6  # of a picture in fp32 RGB that may be alive at once
MOST_PIXELS = 4096 * 1024  # of a whole batch; the edge cases below are larger
SIZE = 64  # of the encoder's pictures

side = st.one_of(st.integers(1, 64), st.sampled_from([223, 224, 225, 1000, 2047, 4096]))
picture_dtype = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8])
shapes = st.tuples(st.integers(1, 3), side, side, st.integers(1, 4)).filter(
    lambda shape: shape[0] * shape[1] * shape[2] <= MOST_PIXELS
)
USES: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda image: clip_image(image, SIZE),
    "pad": lambda image: clip_image(image, SIZE, Fit.PAD),
    "squash": lambda image: clip_image(image, SIZE, Fit.SQUASH),
    "prep": lambda image: prep_image(image, Interpolation.BICUBIC, sharpening=0.5, size=SIZE),
    "prep pad": lambda image: prep_image(
        image, Interpolation.LANCZOS, CropPosition.PAD, sharpening=1.0, size=SIZE
    ),
    "tiles": lambda image: tile_image(image, SIZE, 0.3).tiles.flatten(0, 1),
    "enhancer": lambda image: enhancer_crops(image, 3, EncoderInput(SIZE)),
}


@pytest.fixture(scope="module")
def bound() -> Bound:
    return Bound(SECONDS)


def picture(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values that a picture may have, some of them a little beyond 0..1."""
    g = torch.Generator().manual_seed(seed)
    if dtype is torch.uint8:
        return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    return (torch.rand(shape, generator=g) * 1.2 - 0.1).to(dtype)


def allowed(image: Tensor) -> int:
    """Bytes for a picture: some copies in fp32 RGB, square if it is padded to a square."""
    batch, height, width = image.shape[:3]
    return SLACK + COPIES * 3 * 4 * batch * max(height, width) ** 2


def check(bound: Bound, use: str, image: Tensor) -> None:
    before = image.clone()
    with bound.case(f"{use} of {tuple(image.shape)} {image.dtype}", allowed(image)):
        made = USES[use](image)
        assert made.shape[1:] == (SIZE, SIZE, 3) and len(made) % len(image) == 0
        assert torch.isfinite(made).all() and made.min() >= 0 and made.max() <= 1
    assert torch.equal(image, before)


@settings(max_examples=cases(100), deadline=None, derandomize=cases(1) == 1)
@given(st.sampled_from(list(USES)), shapes, picture_dtype, st.integers(0, 99))
def test_any_picture(
    bound: Bound, use: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    check(bound, use, picture(shape, dtype, seed))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("size", [(1, 4096), (4096, 1), (1, 1)], ids=str)
def test_the_smallest_and_the_longest(bound: Bound, use: str, size: tuple[int, int]) -> None:
    check(bound, use, picture((1, *size, 4), torch.float32, 1))


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_the_largest(bound: Bound, use: str) -> None:
    check(bound, use, picture((1, 4096, 4096, 3), torch.float16, 1))


mask_side = st.one_of(st.integers(1, 40), st.sampled_from([255, 1024, 4096]))
mask_dtype = st.sampled_from([torch.float32, torch.float16, torch.uint8, torch.bool, torch.float64])


@settings(max_examples=cases(100), deadline=None, derandomize=cases(1) == 1)
@given(
    size=st.lists(mask_side, min_size=1, max_size=3).filter(
        lambda sides: torch.Size(sides).numel() <= MOST_PIXELS
    ),
    masks=st.integers(1, 3),
    dtype=mask_dtype,
    grid=st.tuples(st.integers(1, 65), st.integers(1, 65)),
    items=st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_any_mask(
    bound: Bound,
    size: list[int],
    masks: int,
    dtype: torch.dtype,
    grid: tuple[int, int],
    items: list[int],
) -> None:
    """Of rank 1 to 4: refused, or one value per row and position."""
    shape = (masks, *size)
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2).to(dtype)
    if mask[0].numel() * masks > MOST_PIXELS:
        mask = mask[:1]
    most = SLACK + COPIES * 4 * mask.numel()
    with bound.case(f"mask {tuple(mask.shape)} {dtype} at {grid}", most):
        rows = mask_rows(check_mask(mask), *grid, items)
        assert rows.shape[1:] == (grid[0] * grid[1], 1) and rows.shape[0] in (1, len(items))
        assert torch.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1


@settings(max_examples=cases(40), deadline=None, derandomize=cases(1) == 1)
@given(shapes, picture_dtype, st.tuples(st.integers(1, 4), mask_side, mask_side))
def test_any_part_of_a_picture(
    bound: Bound, shape: tuple[int, ...], dtype: torch.dtype, mask_shape: tuple[int, ...]
) -> None:
    if torch.Size(mask_shape).numel() > MOST_PIXELS:
        mask_shape = (1, *mask_shape[1:2], 1)
    image, mask = picture(shape, dtype, 1), torch.ones(mask_shape)
    with bound.case(f"part of {shape} {dtype} inside {mask_shape}", allowed(image)):
        kept = blank_outside(image, mask)
        assert kept.shape == (*shape[:3], 3) and torch.isfinite(kept).all()


def test_what_was_tried(bound: Bound, record_property: Callable[[str, object], None]) -> None:
    record_property("measured", f"pictures and masks: {bound}")
    assert bound.refused < bound.cases or not bound.cases
