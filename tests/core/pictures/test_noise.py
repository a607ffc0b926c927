"""Noise: seeded, apart from the global random state, and as strong as asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ipadapter.pictures.images import prep_image
from ipadapter.pictures.noise import NoiseType, content_seed, noise_image

KINDS = list(NoiseType)


def picture(batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(batch, 3, 6, 9, generator=generator)
    return (
        torch.nn.functional.interpolate(coarse, (200, 300), mode="bicubic")
        .clamp(0, 1)
        .movedim(1, -1)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_an_encoder_sized_image(kind: NoiseType) -> None:
    for image in (None, picture(), picture(3), torch.rand(1, 1, 1, 4)):
        noisy = noise_image(kind, 0.7, 4, image)
        assert noisy.shape == (1 if image is None else len(image), 224, 224, 3)
        assert noisy.min() >= 0.0 and noisy.max() <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_the_global_state_does_not(kind: NoiseType) -> None:
    image = picture()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = noise_image(kind, 0.6, 0, image, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(noise_image(kind, 0.6, 0, image, seed=7), first)
    assert not torch.equal(noise_image(kind, 0.6, 0, image, seed=8), first)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_seed_the_content_decides(kind: NoiseType) -> None:
    image = picture()
    seed = content_seed(prep_image(image))
    assert torch.equal(noise_image(kind, 0.6, 0, image), noise_image(kind, 0.6, 0, image, seed))
    assert content_seed(image) != content_seed(image * 0.9)
    assert content_seed(torch.ones(1, 2, 2, 3)) == 12


def test_strength_zero_leaves_the_image() -> None:
    expected = prep_image(picture())
    for kind in (NoiseType.FADE, NoiseType.DISSOLVE, NoiseType.GAUSSIAN):
        assert torch.equal(noise_image(kind, 0.0, 0, picture()), expected)


def test_full_fade_and_dissolve_forget_the_image() -> None:
    for kind in (NoiseType.FADE, NoiseType.DISSOLVE):
        black = noise_image(kind, 1.0, 0, None, seed=3)
        assert torch.allclose(noise_image(kind, 1.0, 0, picture(), seed=3), black, atol=1e-6)
        assert abs(float(black.mean()) - 0.5) < 0.01


def test_dissolve_replaces_the_asked_share() -> None:
    changed = noise_image(NoiseType.DISSOLVE, 0.3, 0, None) != 0.0
    assert abs(float(changed.float().mean()) - 0.3) < 0.01


def test_gaussian_noise_has_the_asked_deviation() -> None:
    grey = torch.full((1, 224, 224, 3), 128 / 255)
    noisy = noise_image(NoiseType.GAUSSIAN, 0.1, 0, grey)
    assert abs(float((noisy - grey).std()) - 0.1) < 0.002


def test_shuffle_without_strength_is_smooth_and_upside_down() -> None:
    """A field smoothed over 28 pixels moves little: mostly the image turned by half a turn."""
    image = prep_image(picture())
    turned = image.flip(1, 2)
    noisy = noise_image(NoiseType.SHUFFLE, 0.0, 0, image)
    centre = slice(40, -40)
    near = (noisy - turned)[:, centre, centre].abs().mean()
    far = (noisy - image)[:, centre, centre].abs().mean()
    assert near < 0.5 * far


def test_the_elastic_field_is_torchvisions() -> None:
    """The same field through torchvision's own displacement gives the same pixels."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = prep_image(picture())
    generator = torch.Generator().manual_seed(9)
    field = 2.0 * torch.rand((1, 224, 224, 2), generator=generator) - 1.0
    sigma = 3.5 * 0.5
    field = functional.gaussian_blur(field.movedim(-1, 1), [15, 15], [sigma, sigma])
    moved = functional.elastic_transform(image.movedim(-1, 1), field.movedim(1, -1) * 75.0 / 224)
    brightness = 0.75 * 0.5 * torch.randn(image.shape, generator=generator)
    expected = moved.movedim(1, -1).flip(1, 2) * (1 - brightness) + brightness
    ours = noise_image(NoiseType.SHUFFLE, 0.5, 0, image, seed=9)
    assert torch.allclose(ours, expected.clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("blur", [1, 2, 5, 32])
def test_blur_is_a_normalised_gaussian_of_odd_width(blur: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    sharp = noise_image(NoiseType.FADE, 1.0, 0, None, seed=1)
    blurred = noise_image(NoiseType.FADE, 1.0, blur, None, seed=1)
    expected = functional.gaussian_blur(sharp.movedim(-1, 1), [blur | 1, blur | 1])
    assert torch.allclose(blurred, expected.movedim(1, -1), atol=1e-5)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strength: expected 0 to 1, got 1\.5"):
        noise_image(NoiseType.FADE, 1.5)
    with pytest.raises(ValueError, match="blur: expected 0 or more pixels, got -1"):
        noise_image(NoiseType.FADE, 1.0, -1)
