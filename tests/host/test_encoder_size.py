"""Image encoders for pictures of another size, against `transformers` with torchvision's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.models.encoders import SMALL, clip, random_weights, siglip, with_weights
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

POSITIONS = "vision_model.embeddings.position_embedding.weight"
CLIP = {**SMALL, "projection_dim": 48}
KINDS: dict[str, Any] = {
    "CLIP": (clip, CLIP, "clip_vision_model"),
    "SigLIP": (siglip, SMALL, "siglip_vision_model"),
}
LARGER, SMALLER, OWN = 48, 16, 32


def pictures(size: int) -> Tensor:
    values = torch.rand(2, size, size, 3, generator=torch.Generator().manual_seed(4))
    return values.mul(255).round() / 255


def stock(host: Any, kind: str, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """An encoder as the host's own loader gives it, in fp32, and its weights."""
    make, config, model_type = KINDS[kind]
    model = make({**config, **changes})
    state = random_weights(model)
    given = {**model.config.to_dict(), "model_type": model_type}
    given |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if make is siglip else {}
    encoder = host.module("ipadapter.host.encoders")._build(given, state)
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = model.config.layer_norm_eps
    return encoder, state


def resized(host: Any, encoder: Any, size: int) -> Any:
    (copy,) = host.call("IPAdapterImageEncoderSize", clip_vision=encoder, size=size)
    return copy


def hidden(encoder: Any, size: int) -> Tensor:
    with torch.inference_mode():
        return encoder.encode_image(pictures(size)).penultimate_hidden_states.clone()


def torchvision_table(table: Tensor, size: int, leading: int) -> Tensor:
    """Its function wants a class token: one is put before tables that have none."""
    rows = torch.cat([table.new_zeros(1 - leading, table.shape[1]), table]).float()[None]
    state: Any = {"encoder.pos_embedding": rows}
    (made,) = interpolate_embeddings(size, SMALL["patch_size"], state)["encoder.pos_embedding"]
    return made[1 - leading :]


def expected(kind: str, state: Mapping[str, Tensor], size: int) -> Tensor:
    make, config, _ = KINDS[kind]
    table = torchvision_table(state[POSITIONS], size, leading=int(kind == "CLIP"))
    reference = with_weights(
        make({**config, "image_size": size}), {**state, POSITIONS: table.half()}
    )
    images = pictures(size)
    mean, std = (0.5, 0.5) if kind == "SigLIP" else (CLIP_MEAN, CLIP_STD)
    pixels = (images - torch.tensor(mean)).div(torch.tensor(std)).movedim(-1, 1)
    with torch.inference_mode():
        return reference(pixels, output_hidden_states=True).hidden_states[-2]


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def worst(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [LARGER, SMALLER])
@pytest.mark.parametrize("kind", KINDS)
def test_another_size_equals_transformers(
    host: Any, kind: str, size: int, record_property: Any
) -> None:
    encoder, state = stock(host, kind)
    copy = resized(host, encoder, size)
    error = worst(hidden(copy, size), expected(kind, state, size))
    record_property("measured", f"{f'{kind} at {size} px from transformers':<70} {error:.1e}")
    assert error < 1e-5
    assert host.module("ipadapter.host.encode").input_of(copy).size == size


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_that_was_given_stays_as_it_is(host: Any, kind: str) -> None:
    """Whoever runs first, again and in turn: always the same bits, and no table resized twice."""
    encoder, _ = stock(host, kind)
    before, table = hidden(encoder, OWN), encoder.model.state_dict()[POSITIONS].clone()
    large, small = resized(host, encoder, LARGER), resized(host, encoder, SMALLER)
    first = {LARGER: hidden(large, LARGER), SMALLER: hidden(small, SMALLER)}
    again = resized(host, large, SMALLER)  # from the original, not from the larger one
    assert torch.equal(hidden(again, SMALLER), first[SMALLER])
    assert torch.equal(hidden(large, LARGER), first[LARGER])
    assert torch.equal(hidden(encoder, OWN), before)
    assert torch.equal(encoder.model.state_dict()[POSITIONS], table)
    assert resized(host, large, OWN) is encoder and encoder.image_size == OWN


def test_features_are_remembered_by_size(host: Any) -> None:
    vision = host.module("ipadapter.host.encode")
    source = host.module("ipadapter.adapters.vision").EmbedSource.HIDDEN
    encoder, _ = stock(host, "CLIP")
    photo = pictures(100)
    both = [vision.encode(one, photo, source) for one in (encoder, resized(host, encoder, LARGER))]
    assert [tuple(one.shape) for one in both] == [(2, 17, 64), (2, 37, 64)]
    nothing = vision.encode_nothing(resized(host, encoder, LARGER), both[1], source)
    assert tuple(nothing.shape) == (1, 37, 64)


def test_the_judge_sees_corners_that_do_not_align(host: Any, monkeypatch: Any) -> None:
    """As `transformers` itself would resize the table, and as the adapters were not trained."""
    vision = host.module("ipadapter.adapters.vision")
    plain = torch.nn.functional.interpolate

    def wrong(grid: Tensor, **given: Any) -> Tensor:
        return plain(grid, **{**given, "align_corners": False})

    encoder, state = stock(host, "CLIP")
    monkeypatch.setattr(vision.functional, "interpolate", wrong)
    copy = resized(host, encoder, LARGER)
    monkeypatch.undo()
    assert worst(hidden(copy, LARGER), expected("CLIP", state, LARGER)) > 1e-3


def test_one_layer_of_bigg_at_448_pixels(host: Any, record_property: Any) -> None:
    """The published case, by one layer of its real width."""
    from support.models.encoders import OFFICIAL

    config = {**OFFICIAL["ViT-bigG"], "num_hidden_layers": 2, "intermediate_size": 512}
    encoder, state = stock(host, "CLIP", **config)
    copy = resized(host, encoder, 448)
    table = torchvision_of(state[POSITIONS], 448)
    reference = with_weights(clip({**config, "image_size": 448}), {**state, POSITIONS: table})
    images = pictures(448)[:1]
    pixels = (images - torch.tensor(CLIP_MEAN)).div(torch.tensor(CLIP_STD)).movedim(-1, 1)
    with torch.inference_mode():
        got = copy.encode_image(images).image_embeds
        error = worst(got, reference(pixels).image_embeds)
    record_property(
        "measured", f"{'ViT-bigG at 448 px from transformers, two layers':<70} {error:.1e}"
    )
    assert len(table) == 1025 and error < 2e-4


def torchvision_of(table: Tensor, size: int) -> Tensor:
    state: Any = {"encoder.pos_embedding": table.float()[None]}
    return interpolate_embeddings(size, 14, state)["encoder.pos_embedding"][0].half()


# What cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "said"), [(50, "Choose 48 or 56"), (4, "Choose 8 or 16")])
def test_a_size_that_patches_do_not_fill(host: Any, size: int, said: str) -> None:
    encoder, _ = stock(host, "CLIP")
    with pytest.raises(ValueError, match=f"size: {size} px .* {said}, or 32, which is its own"):
        resized(host, encoder, size)


@pytest.mark.parametrize("given", [None, torch.nn.Linear(2, 2), object()])
def test_what_is_no_such_encoder(host: Any, given: Any) -> None:
    with pytest.raises(ValueError, match="only CLIP and SigLIP encoders can take another size"):
        resized(host, given, 448)


def test_kolors_goes_by_the_size_that_an_encoder_was_made_for(host: Any) -> None:
    """ViT-L exists for 224 and 336 pixels with equal widths: resizing makes none the other."""
    encode = host.module("ipadapter.host.encode")
    encoder, _ = stock(host, "CLIP")
    spec = kolors(host)
    wide = resized(host, encoder, LARGER)
    encoder.image_size = 336
    assert encode._why_not(wide, spec) == ""
    encoder.image_size = 224
    assert "takes pictures of 224 px" in encode._why_not(wide, spec)


def kolors(host: Any) -> Any:
    from support.models.adapters import synthetic_adapter

    parts = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(
        synthetic_adapter("Kolors Plus", "Kolors"), "adapter.bin"
    )
    return host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(parts).spec
