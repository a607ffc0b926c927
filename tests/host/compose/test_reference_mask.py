"""A mask on the reference picture: what lies outside has no say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, build_model
from support.models.vision import tiny_clip_vision
from torch import Tensor

HIDDEN, POOLED = 80, 48


def pictures(seed: int) -> Tensor:
    """A picture whose left half is always the same."""
    g = torch.Generator().manual_seed(1)
    left = torch.rand(1, 32, 16, 3, generator=g)
    right = torch.rand(1, 32, 16, 3, generator=torch.Generator().manual_seed(seed))
    return torch.cat([left, right], dim=2)


@pytest.fixture
def tokens(host: Any) -> Any:
    """Image tokens of a picture under a mask: (family, image, mask) -> (1, tokens, dim)."""
    module = lambda name: host.module(f"ipadapter.{name}")  # noqa: E731
    encoder = tiny_clip_vision(projected=POOLED, hidden=HIDDEN)

    def make(family: str, image: Tensor, mask: Tensor | None) -> Tensor:
        kind = module("adapters.families").Family(family)
        state = synthetic_adapter(kind.value, "SD1.5", tiny=True, device="cpu")
        checkpoint = module("adapters.checkpoint").checkpoint_from_dict(state, "random adapter")
        adapter = module("adapters.adapter").Adapter.from_checkpoint(checkpoint)
        pipeline = module("apply.wire").LoadedAdapter(adapter, encoder)
        request = module("apply.request").Request(
            build_model(TINY_SD15), pipeline, image, image_mask=mask
        )
        with torch.inference_mode():
            seen = module("host.encode").see(request)
            return module("apply.prompt").image_prompt(adapter, seen, request).cond

    return make


LEFT = torch.cat([torch.ones(1, 32, 16), torch.zeros(1, 32, 16)], dim=2)
FAMILIES = ["Plus", "standard"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_outside_has_no_influence(tokens: Any, family: Any) -> None:
    first, other = (tokens(family, pictures(seed), LEFT) for seed in (2, 3))
    assert torch.equal(first, other)
    assert not torch.equal(tokens(family, pictures(2), None), tokens(family, pictures(3), None))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_inside_is_read(tokens: Any, family: Any) -> None:
    inside = 1 - LEFT
    first, other = (tokens(family, pictures(seed), inside) for seed in (2, 3))
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_white_mask_changes_nothing(tokens: Any, family: Any) -> None:
    white = tokens(family, pictures(2), torch.ones(1, 32, 32))
    assert torch.allclose(white, tokens(family, pictures(2), None), atol=1e-4)


def test_a_black_mask_is_refused(tokens: Any) -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        tokens("Plus", pictures(2), torch.zeros(1, 32, 32))


def test_several_pictures_have_their_own_masks(tokens: Any) -> None:
    """Two masks for two pictures: the joined prompt holds what each alone would."""
    both = torch.cat([pictures(2), pictures(3)])
    masks = torch.cat([LEFT, 1 - LEFT])
    joined = tokens("Plus", both, masks)
    alone = [tokens("Plus", both[i : i + 1], masks[i : i + 1]) for i in range(2)]
    assert torch.allclose(joined, torch.cat(alone, dim=1), atol=1e-5)


def test_dropping_patches_alone_would_leak(
    host: Any, tokens: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder's self-attention carries every patch into every other, so the outside is blanked
    out before encoding too. Measured on a random encoder: the change of the tokens when the
    outside changes, relative to the change without any mask."""
    functions = (
        host.module("ipadapter.host.encode"),
        host.module("ipadapter.adapters.vision").EmbedSource,
    )
    vision, source = functions
    encoder = tiny_clip_vision(projected=POOLED, hidden=HIDDEN)
    with torch.inference_mode():
        hidden = [vision.encode(encoder, pictures(seed), source.HIDDEN) for seed in (2, 3)]
    keep = host.module("ipadapter.pictures.reference_mask").keep_patches(
        LEFT, (32, 32), hidden[0].shape[1]
    )[0]
    change = (hidden[0] - hidden[1])[0]
    leak = float(change[keep].norm(dim=-1).mean() / change[~keep].norm(dim=-1).mean())
    with capsys.disabled():
        print(f"\nleak through the encoder, patches dropped only: {leak:.1%} (blanked too: 0)")
    assert leak > 0
