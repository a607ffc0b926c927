"""SigLIP with its pooling head, against `transformers` on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from skimage import data
from support.models.encoders import (
    SIGLIP,
    SMALL,
    random_weights,
    save_folder,
    siglip,
    with_weights,
)
from torch import Tensor

# One head, as wide as a reader without a configuration has to assume.
TINY = {key: value for key, value in SMALL.items() if key != "hidden_act"}
HEAD = "vision_model.head."


def load(host: Any, name: str) -> Any:
    (encoder,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name=name)
    return encoder


def saved(host: Any, name: str, state: dict[str, Tensor]) -> str:
    """A single file: the two towers of a published model, of which the text's is not read."""
    text = {"text_model.embeddings.token_embedding.weight": torch.ones(4, 4)}
    other = {"logit_scale": torch.ones(1), "text_model.head.weight": torch.ones(2, 2)}
    save_file({**state, **text, **other}, host.models("clip_vision") / name)
    return name


def worst(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def expected_of(model: Any, state: dict[str, Tensor], images: Tensor) -> Any:
    """`transformers` on pictures of the encoder's own size: (images, size, size, 3)."""
    pixels = (images - 0.5).div(0.5).movedim(-1, 1)
    with torch.inference_mode():
        return with_weights(model, state)(pixels, output_hidden_states=True)


def pictures(size: int, count: int = 2) -> Tensor:
    values = torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(4))
    return values.mul(255).round() / 255


@pytest.fixture(scope="module")
def tiny(host: Any) -> tuple[Any, dict[str, Tensor]]:
    model = siglip(TINY)
    return model, random_weights(model)


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
def test_everything_equals_transformers(
    host: Any, tiny: Any, single: bool, record_property: Any
) -> None:
    model, state = tiny
    name = "siglip whole"
    if single:
        name = saved(host, "siglip whole.safetensors", state)
    else:
        save_folder(host.models("clip_vision") / name, model, state)
    images = pictures(32)
    with torch.inference_mode():
        got = load(host, name).encode_image(images)
    expected = expected_of(model, state, images)
    errors = {
        "pooler output": worst(got.image_embeds, expected.pooler_output),
        "hidden states": worst(got.penultimate_hidden_states, expected.hidden_states[-2]),
        "last hidden state": worst(got.last_hidden_state, expected.last_hidden_state),
    }
    for part, error in errors.items():
        record_property("measured", f"{'SigLIP from transformers: ' + part:<70} {error:.1e}")
    assert max(errors.values()) < 1e-5


def test_layers_of_real_width(host: Any, record_property: Any) -> None:
    """Patches of 14 in 384 pixels, of which the last 6 are in none."""
    model = siglip({**SIGLIP, "num_hidden_layers": 2})
    state, images = random_weights(model), pictures(384, count=1)
    encoder = load(host, saved(host, "siglip wide.safetensors", state))
    with torch.inference_mode():
        got = encoder.encode_image(images).image_embeds
    error = worst(got, expected_of(model, state, images).pooler_output)
    record_property(
        "measured", f"{'SigLIP from transformers: two layers, real width':<70} {error:.1e}"
    )
    assert encoder.image_size == 384 and error < 2e-4


def test_the_judge_sees_a_norm_of_clips_epsilon(host: Any, tiny: Any) -> None:
    """What the host's own SigLIP has, and what an adapter would not notice."""
    model, state = tiny
    encoder, images = load(host, saved(host, "siglip eps.safetensors", state)), pictures(32)
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    with torch.inference_mode():
        got = encoder.encode_image(images).image_embeds
    assert worst(got, expected_of(model, state, images).pooler_output) > 1e-6


def test_a_published_file_goes_the_hosts_own_way(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From keys and shapes alone: nothing of this size is read here."""
    import comfy.clip_vision

    encoders = host.module("ipadapter.host.encoders")
    state = {
        f"vision_model.{k}".replace("vision_model.vision_model", "vision_model"): v
        for k, v in siglip(SIGLIP).named_parameters()
    }
    tensors = host.module("ipadapter.files.tensors").TensorMap.of(state)
    facts = host.module("ipadapter.library.scan").contents_of(tensors, "siglip").encoder
    assert (facts.hidden, facts.projected, facts.image_size, facts.siglip) == (
        1152,
        1152,
        384,
        True,
    )
    assert facts.summary == "SigLIP so400m (1152), 384 px, image_embeds 1152"
    taken = []
    monkeypatch.setattr(
        comfy.clip_vision, "load_clipvision_from_sd", lambda sd: taken.append(sd) or 1
    )
    assert encoders._built(None, state, facts, "siglip") == 1 and taken


def test_pictures_are_prepared_as_transformers_does_it(host: Any, tiny: Any) -> None:
    """The whole picture, its proportions ignored, bicubic, mean and deviation 0.5."""
    from transformers import SiglipImageProcessorPil

    model, state = tiny
    encoder = load(host, saved(host, "siglip seen.safetensors", state))
    photo = torch.from_numpy(data.rocket())[None] / 255  # 427 x 640
    vision = host.module("ipadapter.host.encode")
    source = host.module("ipadapter.adapters.vision").EmbedSource
    prepare = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pixels = prepare(data.rocket(), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        got = vision.encode(encoder, photo, source.POOLED)
        nothing = vision.encode_nothing(encoder, got, source.HIDDEN)
        network = with_weights(model, state)
        expected = network(pixels).pooler_output
        grey = network(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
    assert worst(got, expected) < 1e-5 and worst(nothing, grey) < 1e-5


def test_a_reference_mask_covers_the_whole_picture(host: Any, tiny: Any) -> None:
    """CLIP sees the centre square only, SigLIP the margins as well."""
    encode = host.module("ipadapter.host.encode")
    encoder = load(host, saved(host, "siglip masked.safetensors", tiny[1]))
    form, images = encode.input_of(encoder), host.module("ipadapter.pictures.images")
    assert (form.size, form.fit, form.mean) == (32, images.Fit.SQUASH, (0.5, 0.5, 0.5))
    mask = torch.zeros(1, 32, 96)
    mask[..., :24] = 1  # outside of the centre square
    keep = host.module("ipadapter.pictures.reference_mask").keep_patches
    (kept,) = keep(mask, (32, 96), 16, whole=True)
    assert kept.view(4, 4)[:, 0].all() and not kept.view(4, 4)[:, 1:].any()
    assert images.crop_warning(mask[..., None], form.fit) == ""


# Not what the adapter needs -------------------------------------------------------------------


def refusal(host: Any, encoder: Any, embed_dim: int) -> str:
    """What the check says for an adapter that reads image_embeds of this width."""
    parts = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(
        pooled_adapter(embed_dim), "adapter.bin"
    )
    adapter = host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(parts)
    with pytest.raises(ValueError, match="needs") as caught:
        host.module("ipadapter.host.encode").check_encoder(encoder, adapter.name, adapter.spec)
    return str(caught.value)


def pooled_adapter(embed_dim: int) -> dict[str, Any]:
    from support.models.adapters import synthetic_adapter

    adapter = synthetic_adapter("standard", "SD1.5")
    rows = adapter["image_proj"]["proj.weight"].shape[0]
    adapter["image_proj"]["proj.weight"] = torch.zeros(rows, embed_dim, device="meta")
    return adapter


def test_comfyuis_own_loader_leaves_the_head_out(host: Any, tiny: Any) -> None:
    """Its image_embeds are patches: the message names the node that reads the head."""
    import comfy.clip_vision

    config = {**siglip(TINY).config.to_dict(), "model_type": "siglip_vision_model"}
    stock = host.module("ipadapter.host.encoders")._build(config, tiny[1])
    assert type(stock) is comfy.clip_vision.ClipVisionModel
    said = refusal(host, stock, embed_dim=64)
    assert "with its pooling head" in said and "IPAdapter Image Encoder Loader" in said


def test_a_file_without_the_head(host: Any, tiny: Any) -> None:
    state = {key: value for key, value in tiny[1].items() if not key.startswith(HEAD)}
    encoder = load(host, saved(host, "siglip headless.safetensors", state))
    said = refusal(host, encoder, embed_dim=64)
    assert "lacks vision_model.head" in said and "download" in said
    facts = host.module("ipadapter.host.encoders").facts_of(encoder)
    assert "no vision_model.head, so no image_embeds" in facts.summary


def test_another_encoders_adapter(host: Any, tiny: Any) -> None:
    encoder = load(host, saved(host, "siglip other.safetensors", tiny[1]))
    assert "needs ViT-H (1024), and the connected encoder is" in refusal(host, encoder, 1024)


@pytest.mark.parametrize("left_out", ["probe", "attention.in_proj_bias", "mlp.fc2.weight"])
def test_half_a_head(host: Any, tiny: Any, left_out: str) -> None:
    state = {key: value for key, value in tiny[1].items() if key != HEAD + left_out}
    if left_out == "probe":  # without it there is no head to expect
        assert not load(host, saved(host, "siglip half.safetensors", state)).has_projection
        return
    name = saved(host, f"siglip half {left_out}.safetensors", state)
    with pytest.raises(ValueError, match="incomplete: its pooling head"):
        load(host, name)


def test_training_wants_the_head_too(host: Any, tiny: Any) -> None:
    state = {key: value for key, value in tiny[1].items() if not key.startswith(HEAD)}
    encoder = load(host, saved(host, "siglip untrained.safetensors", state))
    session, source = (
        host.module(f"ipadapter.{name}") for name in ("host.training.session", "adapters.vision")
    )
    with pytest.raises(ValueError, match="needs SigLIP with its pooling head"):
        session._samples(None, encoder, source.EmbedSource.POOLED, None)
