"""Tiles, their masks, and the merging of the enhancer's crops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ipadapter.pictures.images import EncoderInput, clip_image, sharpen
from ipadapter.pictures.tiles import enhance, enhancer_crops, merge_crops, tile_image


def ramp(height: int, width: int, batch: int = 1) -> Tensor:
    """Red grows to the right, green downwards: a pixel tells where it came from."""
    image = torch.zeros(batch, height, width, 3)
    image[..., 0] = torch.linspace(0, 1, width)
    image[..., 1] = torch.linspace(0, 1, height)[:, None]
    return image


@pytest.mark.parametrize(
    ("height", "width", "count", "canvas"),
    [
        (512, 512, 4, (512, 512)),
        (600, 500, 4, (512, 512)),
        (760, 1000, 4, (512, 512)),
        (750, 1000, 2, (256, 341)),
        (1330, 1000, 2, (340, 256)),
        (100, 200, 2, (256, 512)),
        (100, 201, 3, (256, 514)),
        (400, 100, 4, (1024, 256)),
        (1000, 100, 4, (2560, 256)),
    ],
)
def test_the_number_of_tiles_follows_the_proportions(
    height: int, width: int, count: int, canvas: tuple[int, int]
) -> None:
    tiles = tile_image(ramp(height, width, batch=2))
    assert len(tiles) == count
    assert tiles.tiles.shape == (count, 2, 256, 256, 3)
    assert tiles.masks.shape == (count, *canvas)


def test_square_tiles_are_the_quarters_in_reading_order() -> None:
    tiles = tile_image(ramp(512, 512))
    assert torch.allclose(tiles.tiles[1, 0], ramp(512, 512)[0, :256, 256:], atol=1 / 255)
    for index, (rows, columns) in enumerate([(0, 0), (0, 256), (256, 0), (256, 256)]):
        expected = torch.zeros(512, 512)
        expected[rows : rows + 256, columns : columns + 256] = 1.0
        assert torch.equal(tiles.masks[index], expected)


def test_a_row_of_tiles_spans_the_whole_image() -> None:
    tiles = tile_image(ramp(256, 600)).tiles[:, 0]
    assert len(tiles) == 3
    starts = [round(float(tile[0, 0, 0]) * 599) for tile in tiles]
    assert starts[0] == 0 and abs(starts[1] - 172) <= 2 and abs(starts[2] - 344) <= 2
    assert tiles[2, 0, -1, 0] == 1.0


def test_a_mask_is_where_its_tile_is() -> None:
    """The middle of each mask lies within its tile, and neighbours meet halfway."""
    masks = tile_image(ramp(256, 600)).masks
    columns = [mask[0].nonzero().flatten() for mask in masks]
    assert [int(c[0]) for c in columns] == [0, 214, 386]
    assert [int(c[-1]) for c in columns] == [213, 385, 599]


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_the_masks_share_no_pixel_and_cover_all(height: int, width: int) -> None:
    tiles = tile_image(ramp(height, width), tile_size=16)
    assert torch.equal(tiles.masks.sum(0), torch.ones_like(tiles.masks[0]))
    assert 2 <= len(tiles) <= 4
    assert all(mask.any() for mask in tiles.masks)
    canvas = tiles.masks.shape[1] / tiles.masks.shape[2]
    if not 0.75 < height / width < 1.33 and 1 / 16 <= height / width <= 16:
        assert canvas == pytest.approx(height / width, rel=0.07)


def test_sharpening_reaches_every_tile() -> None:
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    plain, sharp = tile_image(image, 32), tile_image(image, 32, sharpening=0.6)
    for before, after in zip(plain.tiles, sharp.tiles, strict=True):
        assert torch.equal(after, sharpen(before, 0.6))


def test_elongated_images_stay_small() -> None:
    tiles = tile_image(torch.rand(1, 8000, 10, 3))
    assert tiles.masks.shape == (4, 4096, 256)


def test_crops_are_the_parts_of_the_large_square() -> None:
    image = torch.rand(2, 50, 70, 3, generator=torch.Generator().manual_seed(0))
    crops = enhancer_crops(image, 3, EncoderInput(16))
    square = clip_image(image, 48)
    assert crops.shape == (18, 16, 16, 3)
    for picture in range(2):
        for row in range(3):
            for column in range(3):
                rows, columns = slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)
                crop = crops[picture * 9 + row * 3 + column]
                assert torch.equal(crop, square[picture, rows, columns])
    assert torch.equal(enhancer_crops(image, 1, EncoderInput(16)), clip_image(image, 16))


def naive_merge(features: Tensor, tiles: int, leading: int, side: int) -> Tensor:
    """One image's crops (tiles * tiles, tokens, dim) -> (tokens, dim), patch by patch."""
    result = torch.zeros_like(features[0])
    if leading:
        result[0] = features[:, 0].mean(0)
    for y in range(side):
        for x in range(side):
            parts = []
            for j in range(y * tiles, (y + 1) * tiles):
                for i in range(x * tiles, (x + 1) * tiles):
                    crop = (j // side) * tiles + i // side
                    parts.append(features[crop, leading + (j % side) * side + i % side])
            result[leading + y * side + x] = torch.stack(parts).mean(0)
    return result


@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize(("leading", "side"), [(1, 16), (1, 24), (0, 27), (0, 3), (1, 1)])
def test_merging_stitches_and_pools_for_every_encoder(tiles: int, leading: int, side: int) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, tiles * tiles, leading + side * side, 5)
    features = torch.rand(shape, generator=generator, dtype=torch.float64)
    merged = merge_crops(features.flatten(0, 1), tiles)
    assert merged.shape == (2, leading + side * side, 5)
    for picture in range(2):
        assert torch.allclose(merged[picture], naive_merge(features[picture], tiles, leading, side))


@pytest.mark.parametrize("width", [768, 1024, 1280])
def test_pooled_features_of_any_width_are_averaged(width: int) -> None:
    features = torch.rand(8, width, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(merge_crops(features, 2), features.view(2, 4, width).mean(1))


def test_enhancing_blends_a_batch_and_stacks_a_single_image() -> None:
    generator = torch.Generator().manual_seed(3)
    full, crops = (torch.rand(n, 17, 4, generator=generator) for n in (2, 8))
    detail = merge_crops(crops, 2)
    assert torch.allclose(enhance(full, crops, 2, 0.3), 0.3 * full + 0.7 * detail)
    single = enhance(full[:1], crops[:4], 2, 0.3)
    assert torch.allclose(single, torch.cat([0.3 * full[:1], detail[:1]]))


def test_merging_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 x 2 crops per image, so a multiple of 4, got 6"):
        merge_crops(torch.zeros(6, 17, 4), 2)
    with pytest.raises(ValueError, match="class token, got 13 tokens"):
        merge_crops(torch.zeros(4, 13, 4), 2)
    with pytest.raises(ValueError, match="enhance_tiles: expected 1 or more, got 0"):
        enhancer_crops(torch.zeros(1, 4, 4, 3), 0)
    with pytest.raises(ValueError, match="features of the same images"):
        enhance(torch.zeros(1, 5, 4), torch.zeros(8, 5, 4), 2, 1.0)
