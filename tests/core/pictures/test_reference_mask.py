"""Reference masks: the geometry of an encoder's patches, and what a Resampler no longer sees."""

from __future__ import annotations

import pytest
import torch
from support.models.adapters import synthetic_adapter

from ipadapter.adapters.adapter import build_projector
from ipadapter.adapters.families import Family
from ipadapter.adapters.spec import identify
from ipadapter.pictures.reference_mask import keep_patches


def half(height: int = 32, width: int = 32) -> torch.Tensor:
    """White on the left half."""
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1.0
    return mask


def test_patches_inside_are_kept_and_the_class_token_goes() -> None:
    (keep,) = keep_patches(half(), (32, 32), 17)
    assert not keep[0]
    assert keep[1:].reshape(4, 4).tolist() == [[True, True, False, False]] * 4


def test_an_encoder_without_class_token_has_patches_only() -> None:
    (keep,) = keep_patches(half(), (32, 32), 16)
    assert keep.reshape(4, 4).tolist() == [[True, True, False, False]] * 4


def test_a_white_mask_keeps_everything() -> None:
    assert keep_patches(torch.ones(1, 5, 9), (70, 50), 257).all()


def test_only_the_centre_square_counts() -> None:
    """Of a wide picture the encoder sees the middle: a mask on the left third reaches its edge."""
    mask = torch.zeros(1, 32, 96)
    mask[..., :48] = 1.0
    (keep,) = keep_patches(mask, (64, 192), 16)
    assert keep.reshape(4, 4).tolist() == [[True, True, False, False]] * 4
    mask = torch.zeros(1, 96, 32)
    mask[:, :48] = 1.0
    (keep,) = keep_patches(mask, (192, 64), 16)
    assert keep.reshape(4, 4).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_mask_i_belongs_to_picture_i_and_the_last_to_the_rest() -> None:
    masks = torch.cat([half(), 1 - half()])
    keep = keep_patches(masks, (32, 32), 16, images=3)
    assert torch.equal(keep[1], keep[2]) and torch.equal(keep[0], ~keep[1])


def test_a_mask_smaller_than_a_patch_keeps_that_patch() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[0, 20, 20] = 1.0
    (keep,) = keep_patches(mask, (64, 64), 16)
    assert keep.sum() == 1 and keep.reshape(4, 4)[1, 1]


@pytest.mark.parametrize(
    ("mask", "patches", "message"),
    [
        (torch.zeros(1, 8, 8), 16, "leaves nothing"),
        (torch.full((1, 8, 8), float("nan")), 16, "NaN"),
        (torch.ones(1, 8, 8), 15, "15 tokens"),
    ],
)
def test_bad_masks_are_refused(mask: torch.Tensor, patches: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_patches(mask, (32, 32), patches)


def test_a_mask_outside_the_centre_square_is_refused() -> None:
    mask = torch.zeros(1, 32, 96)
    mask[..., :8] = 1.0
    with pytest.raises(ValueError, match="centre square"):
        keep_patches(mask, (32, 96), 16)


def test_dropped_patches_have_no_say() -> None:
    """The Resampler gives the same tokens as for hidden states without those patches."""
    state = synthetic_adapter(Family.PLUS, "SD1.5", tiny=True, device="cpu")
    shapes = {half: {k: tuple(v.shape) for k, v in part.items()} for half, part in state.items()}
    spec = identify(shapes["image_proj"], shapes["ip_adapter"], "test")
    resampler = build_projector(spec, state["image_proj"])
    hidden = torch.randn(1, 17, spec.embed_dim, generator=torch.Generator().manual_seed(0))
    keep = keep_patches(half(), (32, 32), 17)
    masked = resampler(hidden, keep)
    assert torch.allclose(masked, resampler(hidden[:, keep[0]]), atol=1e-6)
    assert torch.equal(masked, resampler(torch.where(keep[..., None], hidden, 9.0), keep))
