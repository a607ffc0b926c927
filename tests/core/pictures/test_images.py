"""Image preparation against Hugging Face's processor, Pillow and naive formulas."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ipadapter.pictures.images import (
    BLACK,
    CLIP_MEAN,
    MAX_ELONGATION,
    CropPosition,
    Fit,
    Interpolation,
    as_rgb,
    clip_image,
    crop_loss,
    crop_square,
    pad_square,
    prep_image,
    resize,
    sharpen,
    warn_crop_loss,
)

SIZES = [(1, 1), (224, 224), (223, 225), (1024, 683), (683, 1024), (300, 200), (7, 50), (90, 17)]


def random_image(height: int, width: int, channels: int = 3, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * 10007 + width)
    return torch.rand(batch, height, width, channels, generator=generator)


def photograph() -> Tensor:
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()).unsqueeze(0) / 255.0


def levels(image: Tensor) -> np.ndarray:
    return (image * 255.0).round().to(torch.uint8).numpy()


def hugging_face(image: Tensor, size: int) -> np.ndarray:
    """The 8-bit crop that transformers' CLIP processor makes of one image."""
    try:
        from transformers import CLIPImageProcessorPil
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchaudio of another build
        pytest.skip(f"transformers has no working CLIP processor here: {error}")
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    picture = Image.fromarray(levels(image)[0])
    done = processor(picture, do_rescale=False, do_normalize=False, return_tensors="np")
    return np.moveaxis(np.asarray(done["pixel_values"][0]), 0, -1)


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_the_reference_processor(height: int, width: int, size: int) -> None:
    image = random_image(height, width)
    ours = clip_image(image, size)
    assert ours.shape == (1, size, size, 3) and ours.dtype == torch.float32
    assert np.array_equal(levels(ours)[0], hugging_face(image, size))


def test_the_long_side_is_truncated() -> None:
    """1024 x 683 becomes 335 high, not the host's rounded 336: up to 14 levels lie between."""
    image = random_image(1024, 683)
    expected = resize(image, 335, 224)[:, 55:279]
    assert torch.equal(clip_image(image), expected)


@pytest.mark.parametrize("shape", [(0, 512, 0, 350), (0, 301, 0, 512), (10, 500, 3, 400)])
def test_photographs_are_exact(shape: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = shape
    image = photograph()[:, top:bottom, left:right]
    assert np.array_equal(levels(clip_image(image))[0], hugging_face(image, 224))


ELONGATED = [(512, 12), (3800, 224), (4000, 100), (8000, 300), (1000, 10), (700, 3), (1, 300)]


@pytest.mark.parametrize("size", ELONGATED)
@pytest.mark.parametrize("turned", [False, True])
def test_elongated_images_are_exact(size: tuple[int, int], turned: bool) -> None:
    """Noise, where the order of Pillow's two passes shows most: up to 26 levels."""
    height, width = reversed(size) if turned else size
    image = random_image(height, width)
    assert np.array_equal(levels(clip_image(image))[0], hugging_face(image, 224))


@pytest.mark.parametrize(("height", "width"), [(2200, 2), (2, 2200)])
def test_the_window_of_a_line_is_the_same_crop(height: int, width: int) -> None:
    """Beyond the elongation limit only the window is computed: at most one level away."""
    image = random_image(height, width)
    assert max(height, width) / min(height, width) > MAX_ELONGATION
    difference = levels(clip_image(image, 32))[0].astype(int) - hugging_face(image, 32).astype(int)
    assert np.abs(difference).max() <= 1


def test_extreme_images_work() -> None:
    for height, width in [(8000, 10), (10, 8000), (1, 4096), (1, 1)]:
        image = torch.full((1, height, width, 3), 128 / 255)
        assert torch.equal(clip_image(image), torch.full((1, 224, 224, 3), 128 / 255))


def test_the_result_survives_the_hosts_own_quantisation() -> None:
    image = clip_image(random_image(300, 400))
    assert torch.equal(torch.clip(255.0 * image, 0, 255).round() / 255.0, image)
    assert torch.equal(clip_image(image), image)


def test_batches_are_prepared_image_by_image() -> None:
    image = random_image(60, 90, batch=3)
    each = torch.cat([clip_image(one[None]) for one in image])
    assert torch.equal(clip_image(image), each)


def test_pad_keeps_everything_on_the_mean_colour() -> None:
    image = torch.ones(1, 50, 100, 3)
    padded = clip_image(image, 100, Fit.PAD)
    assert torch.allclose(padded[0, 0, 0], torch.tensor(CLIP_MEAN), atol=0.5 / 255)
    assert torch.equal(padded[:, 30:70], torch.ones(1, 40, 100, 3))


def test_squash_ignores_proportions() -> None:
    image = torch.zeros(1, 40, 80, 3)
    image[:, :, 40:] = 1.0
    squashed = clip_image(image, 20, Fit.SQUASH)
    assert (squashed[:, :, :8] == 0).all() and (squashed[:, :, 12:] == 1).all()


def test_accepted_formats_agree() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    as_float = grey / 255.0
    expected = as_float.expand(-1, -1, -1, 3)
    for image in (grey, as_float, as_float[0], as_float.double(), grey.expand(-1, -1, -1, 3)):
        assert torch.allclose(as_rgb(image), expected)
    assert as_rgb(as_float.half()).dtype == torch.float32


def test_transparency_is_composited_over_white() -> None:
    rgba = torch.zeros(1, 1, 3, 4)
    rgba[..., 0] = 1.0
    rgba[0, 0, :, 3] = torch.tensor([0.0, 0.5, 1.0])
    expected = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    assert torch.allclose(as_rgb(rgba)[0, 0], expected)
    assert torch.allclose(as_rgb(rgba[..., 1:4:2])[0, 0, :, 0], torch.tensor([1.0, 0.5, 0.0]))


def test_values_outside_the_range_are_clipped() -> None:
    image = torch.tensor([-1.0, 0.5, 7.0]).view(1, 1, 1, 3)
    assert as_rgb(image).flatten().tolist() == [0.0, 0.5, 1.0]


LEVELS = torch.tensor([0.0, 1.0, 30.0, 128.0, 255.0, 254.0]).view(1, 1, 2, 3)
OTHERS = [torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, *OTHERS, torch.float16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("alpha", [None, 0, 51, 255])
def test_levels_of_any_dtype_are_scaled(
    dtype: torch.dtype, alpha: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    image, expected = LEVELS, LEVELS / 255
    if alpha is not None:
        image = torch.cat([LEVELS, torch.full((1, 1, 2, 1), float(alpha))], dim=-1)
        expected = (LEVELS * alpha / 255 + 255 - alpha) / 255
    with caplog.at_level(logging.WARNING, "ipadapter"):
        assert torch.allclose(as_rgb(image.to(dtype)), expected, atol=1e-6)
    assert ("divided by 255" in caplog.text) == (dtype != torch.uint8)


def test_float_levels_that_were_resized_are_levels_too() -> None:
    """A photograph times 255 is no longer whole after resampling, and may overshoot."""
    levels = 255 * photograph()
    soft = F.interpolate(levels.movedim(-1, 1), scale_factor=0.3, mode="bicubic").movedim(1, -1)
    assert soft.max() > 255 or soft.min() < 0
    assert torch.equal(as_rgb(soft), (soft / 255).clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_whole_pictures_of_0_and_1_stay(dtype: torch.dtype) -> None:
    image = (random_image(6, 6) > 0.5).to(dtype)
    assert torch.equal(as_rgb(image), image.float())


def test_highlights_are_white_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """Rendered light goes far above 1 in a few places; the rest keeps its brightness."""
    image = random_image(20, 20)
    image[0, :2, :2] = 40.0
    with caplog.at_level(logging.WARNING, "ipadapter"):
        assert torch.equal(as_rgb(image), image.clamp(0, 1))
    assert "image holds values up to 40: above 1 is as white as 1." in caplog.text


def test_a_little_too_much_is_clipped_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    image = random_image(20, 20) * 1.2 - 0.1
    assert torch.equal(as_rgb(image), image.clamp(0, 1))
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_more_than_8_bits_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="expected pixel values from 0 to 1, got up to 65535"):
        as_rgb((LEVELS * 257).to(dtype))


def test_a_good_picture_is_not_copied() -> None:
    image = random_image(8, 8, batch=2)
    assert as_rgb(image).data_ptr() == image.data_ptr()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_pixels_name_the_image(value: float) -> None:
    image = torch.zeros(3, 4, 4, 3)
    image[1, 2, 2, 0] = value
    with pytest.raises(ValueError, match=r"image_negative: .* image 1 of 3 has NaN"):
        clip_image(image, name="image_negative")


@pytest.mark.parametrize(
    "shape", [(4, 4), (1, 4, 4, 5), (0, 4, 4, 3), (1, 0, 4, 3), (1, 1, 4, 4, 3)]
)
def test_wrong_shapes_say_what_came(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image: expected .* got \("):
        as_rgb(torch.zeros(shape))


def test_something_else_is_not_an_image() -> None:
    with pytest.raises(ValueError, match="expected an image tensor, got NoneType"):
        as_rgb(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", list(CropPosition))
@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (31, 30)])
def test_prep_keeps_the_named_part(position: CropPosition, height: int, width: int) -> None:
    image = random_image(height, width)
    prepared = prep_image(image, Interpolation.BOX, position, size=30)
    if position is CropPosition.PAD:
        expected = resize(pad_square(image, BLACK), 30, 30, Interpolation.BOX)
    else:
        rows = {"top": 0, "bottom": height - 30}.get(position.value, (height - 30) // 2)
        columns = {"left": 0, "right": width - 30}.get(position.value, (width - 30) // 2)
        expected = image[:, rows : rows + 30, columns : columns + 30]
    assert np.array_equal(levels(prepared), levels(expected))


@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_resampling_is_pillows(interpolation: Interpolation) -> None:
    image = random_image(64, 48)
    picture = Image.fromarray(levels(image)[0])
    expected = picture.resize((31, 17), Image.Resampling[interpolation.name])
    assert np.array_equal(levels(resize(image, 17, 31, interpolation))[0], np.asarray(expected))


def naive_sharpen(image: np.ndarray, amount: float) -> np.ndarray:
    """FidelityFX CAS, pixel by pixel, on (height, width)."""
    height, width = image.shape
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            rows = [min(max(y + d, 0), height - 1) for d in (-1, 0, 1)]
            columns = [min(max(x + d, 0), width - 1) for d in (-1, 0, 1)]
            a, b, c, d, e, f, g, h, i = (image[r, k] for r in rows for k in columns)
            low, high = min(b, d, e, f, h), max(b, d, e, f, h)
            low += min(low, a, c, g, i)
            high += max(high, a, c, g, i)
            room = np.sqrt(max(min(low, 2 - high), 0) / max(high, 1e-6))
            ring = -room * (0.125 + amount * 0.075)
            result[y, x] = np.clip(((b + d + f + h) * ring + e) / (1 + 4 * ring), 0, 1)
    return result


@pytest.mark.parametrize("amount", [0.05, 0.5, 1.0])
def test_sharpening_is_the_published_formula(amount: float) -> None:
    image = random_image(9, 7).double()
    sharpened = sharpen(image, amount)
    for channel in range(3):
        expected = naive_sharpen(image[0, :, :, channel].numpy(), amount)
        assert np.allclose(sharpened[0, :, :, channel].numpy(), expected, atol=1e-12)


def test_sharpening_laws() -> None:
    image = random_image(20, 20)
    assert sharpen(image, 0.0) is image
    for flat in (0.0, 0.3, 1.0):
        plain = torch.full((1, 5, 5, 3), flat)
        assert torch.allclose(sharpen(plain, 1.0), plain, atol=1e-6)
    soft = 0.3 + 0.4 * resize(image, 80, 80)
    assert sharpen(soft, 1.0).std() > sharpen(soft, 0.2).std() > soft.std()
    with pytest.raises(ValueError, match=r"sharpening: expected 0 to 1, got 1\.5"):
        sharpen(image, 1.5)


def test_crop_loss_names_fraction_and_sides() -> None:
    assert crop_loss(512, 512) is None
    wide = crop_loss(500, 1000)
    assert wide is not None and wide.fraction == 0.5 and wide.sides == ("left", "right")
    assert str(wide) == "50% of the image is cut off (left and right)"
    tall = crop_loss(1000, 750)
    assert tall is not None and tall.fraction == 0.25 and tall.sides == ("top", "bottom")


def test_a_large_loss_is_logged_with_a_way_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ipadapter"):
        warn_crop_loss(torch.zeros(1, 100, 110, 3))
        assert caplog.records == []
        warn_crop_loss(torch.zeros(1, 100, 300, 3), name="image_style")
    assert "image_style is 300 x 100" in caplog.text and "67%" in caplog.text
    assert "IPAdapter Tiled" in caplog.text


side = st.one_of(st.integers(1, 40), st.sampled_from([1, 223, 224, 225, 1000, 4096]))


@settings(max_examples=60, deadline=None)
@given(
    height=side,
    width=side,
    channels=st.integers(1, 4),
    batch=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8]),
    fit=st.sampled_from(list(Fit)),
    size=st.sampled_from([1, 16, 224]),
)
def test_any_image_becomes_an_encoder_input(
    height: int,
    width: int,
    channels: int,
    batch: int,
    dtype: torch.dtype,
    fit: Fit,
    size: int,
) -> None:
    image = torch.linspace(0, 1, 4).view(2, 1, 1, 2)[:batch, ..., :1]
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    image = image.expand(batch, min(height, 64 if width > 1000 else height), width, channels)
    before = image.clone()
    prepared = clip_image(image, size, fit)
    assert prepared.shape == (batch, size, size, 3) and prepared.dtype == torch.float32
    assert prepared.min() >= 0.0 and prepared.max() <= 1.0
    assert torch.equal(prepared * 255, (prepared * 255).round())
    assert torch.equal(image, before)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    position=st.sampled_from([p for p in CropPosition if p is not CropPosition.PAD]),
)
def test_a_crop_is_a_square_part(height: int, width: int, position: CropPosition) -> None:
    image = random_image(height, width)
    square = crop_square(image, position)
    expected_side = min(height, width)
    assert square.shape == (1, expected_side, expected_side, 3)
    mirrored = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}
    if position.value in mirrored:
        flipped = crop_square(image.flip(1, 2), CropPosition(mirrored[position.value]))
        rest = {"top": 2, "bottom": 2, "left": 1, "right": 1}[position.value]
        if image.shape[rest] == expected_side or (image.shape[rest] - expected_side) % 2 == 0:
            assert torch.equal(flipped.flip(1, 2), square)
