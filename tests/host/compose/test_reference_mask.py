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


@pytest.mark.parametrize("family", ["Plus", "standard", "Full Face"])
def test_a_black_mask_is_refused(tokens: Any, family: str) -> None:
    with pytest.raises(ValueError, match="image_mask leaves nothing"):
        tokens(family, pictures(2), torch.zeros(1, 32, 32))


# Apply's image_mask and the Encoder's mask are one thing ----------------------------------------


def wires_of(host: Any, family: str) -> dict[str, Any]:
    state = synthetic_adapter(family, "SD1.5", tiny=True, device="cpu")
    checkpoint = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(state, "random")
    adapter = host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)
    return {"ipadapter": adapter, "clip_vision": tiny_clip_vision(projected=POOLED, hidden=HIDDEN)}


def keys_of(model: Any) -> Tensor:
    """Keys of the prompt and of the negative, of every layer."""
    slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    layers = [one.layer for slot in slots.values() for one in slot.injections]
    return torch.cat([key.flatten() for one in layers for key in (one.cond.key, one.uncond.key)])


@pytest.fixture(scope="module")
def model(host: Any) -> Any:
    return build_model(TINY_SD15)


MASKS = {
    "left": (1, LEFT),
    "two pictures, one mask": (2, LEFT),
    "a mask each": (2, torch.cat([LEFT, 1 - LEFT])),
    "none": (1, None),
}


@pytest.mark.parametrize("in_a_file", [False, True], ids=["wire", "file"])
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("family", ["Plus", "standard", "Full Face"])
def test_the_encoders_mask_is_apply_s_image_mask(
    host: Any, model: Any, family: str, case: str, in_a_file: bool
) -> None:
    count, mask = MASKS[case]
    wires, image = wires_of(host, family), torch.cat([pictures(2 + i) for i in range(count)])
    for combine, node in (("concat", "IPAdapterAdvanced"), ("", "IPAdapterBatch")):
        (expected,) = node_with(host, node, model, wires, image, mask)
        embeds, negative = host.call(
            "IPAdapterEncoder", **wires, image=image, mask=mask, weight=1.0
        )
        if in_a_file:
            host.call("IPAdapterSaveEmbeds", embeds=embeds, filename_prefix="part")
            latest = max((host.base / "input").glob("part_*.ipadpt.safetensors"))
            (embeds,) = host.call("IPAdapterLoadEmbeds", embeds=latest.name)
        (got,) = host.call(
            "IPAdapterEmbeds" if combine else "IPAdapterEmbedsBatch",
            model=model,
            **wires,
            pos_embed=embeds,
            neg_embed=negative,
        )
        assert torch.allclose(keys_of(got), keys_of(expected), atol=1e-6)


def node_with(
    host: Any, node: str, model: Any, wires: dict[str, Any], image: Tensor, mask: Tensor | None
) -> Any:
    """What Python callers of a node get, who may give image_mask to all of them."""
    return host.node(node)().apply_ipadapter(model=model, **wires, image=image, image_mask=mask)[:1]


def test_pictures_with_masks_that_are_encoded_one_by_one_combine(host: Any, model: Any) -> None:
    wires, images, masks = wires_of(host, "Plus"), [pictures(2), pictures(3)], [LEFT, 1 - LEFT]
    each = [
        host.call("IPAdapterEncoder", **wires, image=image, mask=mask, weight=1.0)[0]
        for image, mask in zip(images, masks, strict=True)
    ]
    (both,) = host.call("IPAdapterCombineEmbeds", embed1=each[0], embed2=each[1], method="concat")
    (got,) = host.call("IPAdapterEmbeds", model=model, **wires, pos_embed=both)
    (expected,) = node_with(
        host, "IPAdapterAdvanced", model, wires, torch.cat(images), torch.cat(masks)
    )
    assert torch.allclose(keys_of(got), keys_of(expected), atol=1e-6)


def test_embeds_of_a_part_serve_a_family_that_takes_all_patches(host: Any, model: Any) -> None:
    """Full Face takes the same hidden states as Plus and cannot leave patches out."""
    plus, full = wires_of(host, "Plus"), wires_of(host, "Full Face")
    part, _ = host.call("IPAdapterEncoder", **plus, image=pictures(2), mask=LEFT, weight=1.0)
    (got,) = host.call("IPAdapterEmbeds", model=model, **full, pos_embed=part)
    (expected,) = node_with(host, "IPAdapterAdvanced", model, full, pictures(2), LEFT)
    assert torch.allclose(keys_of(got), keys_of(expected), atol=1e-6)


@pytest.mark.parametrize("family", ["Plus", "standard", "Full Face"])
def test_a_mask_that_leaves_nothing_is_refused_by_its_name(
    host: Any, model: Any, family: str
) -> None:
    wires = {**wires_of(host, family), "image": pictures(2)}
    for mask in (torch.zeros(1, 64, 64), torch.zeros(64, 64), torch.cat([0 * LEFT, LEFT])):
        with pytest.raises(ValueError, match=r"^image_mask leaves nothing.*Load Image"):
            host.call("IPAdapterAdvanced", model=model, **wires, image_mask=mask)
        with pytest.raises(ValueError, match=r"^mask leaves nothing.*Load Image"):
            host.call("IPAdapterEncoder", **wires, mask=mask, weight=1.0)
    with pytest.raises(ValueError, match=r"^image_mask holds NaN"):
        host.call("IPAdapterAdvanced", model=model, **wires, image_mask=LEFT * float("nan"))
    with pytest.raises(ValueError, match=r"^mask has shape \(8,\)"):
        host.call("IPAdapterEncoder", **wires, mask=torch.ones(8), weight=1.0)


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
