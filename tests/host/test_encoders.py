"""Image encoders of every size and layout, against `transformers` on the same weights."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models.encoders import (
    OFFICIAL,
    SMALL,
    clip,
    openclip_layout,
    published,
    random_weights,
    save_folder,
    with_weights,
)
from support.models.vision import tiny_clip_vision
from torch import Tensor

SMALL_CLIP = {**SMALL, "projection_dim": 48}
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def load(host: Any, name: str) -> Any:
    (encoder,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name=name)
    return encoder


def pictures(size: int, count: int = 2) -> Tensor:
    """(count, size, size, 3) in steps of 1/255, which preprocessing leaves alone."""
    values = torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(4))
    return values.mul(255).round() / 255


def pixel_values(images: Tensor, mean: Any = OPENAI_MEAN, std: Any = OPENAI_STD) -> Tensor:
    return (images - torch.tensor(mean)).div(torch.tensor(std)).movedim(-1, 1)


def worst(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the size of the expected values."""
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def small_clip(host: Any) -> tuple[Path, dict[str, Tensor]]:
    model = clip(SMALL_CLIP)
    state = random_weights(model)
    folder = host.models("clip_vision") / "hub" / "small clip"
    save_folder(folder, model, state, image_mean=list(HALF), size={"shortest_edge": 32})
    return folder, state


@pytest.mark.parametrize("name", ["hub/small clip", "hub/small clip/model.safetensors"])
def test_a_clip_folder(host: Any, small_clip: Any, name: str) -> None:
    """Its configuration and its preprocessor's mean are used, also for the file inside it."""
    encoder, images = load(host, name), pictures(32)
    with torch.inference_mode():
        got = encoder.encode_image(images)
        expected = with_weights(clip(SMALL_CLIP), small_clip[1])(
            pixel_values(images, mean=HALF), output_hidden_states=True
        )
    assert worst(got.image_embeds, expected.image_embeds) < 1e-3
    assert worst(got.penultimate_hidden_states, expected.hidden_states[-2]) < 1e-3
    assert load(host, name) is encoder


def test_a_whole_clip_model(host: Any, small_clip: Any) -> None:
    """A CLIPModel's configuration holds the image encoder's; its file holds text weights too."""
    folder = host.models("clip_vision") / "whole"
    state = {**small_clip[1], "text_model.embeddings.token_embedding.weight": torch.ones(2, 2)}
    save_folder(folder, clip(SMALL_CLIP), state)
    nested = {"model_type": "clip", "projection_dim": 48, "vision_config": dict(SMALL)}
    (folder / "config.json").write_text(json.dumps(nested), "utf-8")
    images = pictures(32)
    with torch.inference_mode():
        got = load(host, "whole").encode_image(images).image_embeds
        expected = with_weights(clip(SMALL_CLIP), small_clip[1])(pixel_values(images)).image_embeds
    assert worst(got, expected) < 1e-3


def test_a_file_of_an_unusual_size(host: Any, small_clip: Any, caplog: Any) -> None:
    """Shapes say all but heads and activation, which are assumed aloud."""
    save_file(small_clip[1], host.models("clip_vision") / "small.safetensors")
    images = pictures(32)
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "ipadapter"):
        got = load(host, "small.safetensors").encode_image(images)
        expected = with_weights(clip(SMALL_CLIP), small_clip[1])(
            pixel_values(images), output_hidden_states=True
        )
    assert worst(got.image_embeds, expected.image_embeds) < 1e-3
    assert worst(got.penultimate_hidden_states, expected.hidden_states[-2]) < 1e-3
    assert "small.safetensors" in caplog.text and "config.json" in caplog.text


def test_openclip_layout(host: Any) -> None:
    config = {**SMALL_CLIP, "hidden_act": "gelu"}
    model = clip(config)
    state = random_weights(model)
    save_file(openclip_layout(state), host.models("clip_vision") / "open_clip_model.safetensors")
    images = pictures(32)
    with torch.inference_mode():
        got = load(host, "open_clip_model.safetensors").encode_image(images)
        reference = with_weights(model, state)
        expected = reference(pixel_values(images), output_hidden_states=True)
    assert worst(got.image_embeds, expected.image_embeds) < 1e-3
    assert worst(got.penultimate_hidden_states, expected.hidden_states[-2]) < 1e-3


@pytest.mark.parametrize("layout", ["transformers", "openclip"])
@pytest.mark.parametrize("kind", OFFICIAL)
def test_official_sizes_go_the_hosts_own_way(
    host: Any, monkeypatch: pytest.MonkeyPatch, kind: str, layout: str
) -> None:
    """From keys and shapes alone: nothing of this size is read here."""
    import comfy.clip_vision

    encoders = host.module("ipadapter.host.encoders")
    tensorfile = host.module("ipadapter.files.tensors")
    state = {published(key): value for key, value in clip(OFFICIAL[kind]).named_parameters()}
    if layout == "openclip":
        state = openclip_layout(state)
    facts = (
        host.module("ipadapter.library.scan")
        .contents_of(tensorfile.TensorMap.of(state), kind)
        .encoder
    )
    config = OFFICIAL[kind]
    assert (facts.hidden, facts.projected) == (config["hidden_size"], config["projection_dim"])
    assert (facts.image_size, facts.openclip) == (config["image_size"], layout == "openclip")
    if layout == "openclip":
        state = comfy.clip_vision.convert_to_transformers(state, "visual.")
    taken = []
    monkeypatch.setattr(
        comfy.clip_vision, "load_clipvision_from_sd", lambda sd: taken.append(sd) or 1
    )
    assert encoders._built(None, state, facts, kind) == 1
    assert len(taken) == 1


# Beside and instead of the right file --------------------------------------------------------


def test_a_config_of_another_model_beside_a_file_is_left_alone(host: Any, small_clip: Any) -> None:
    """Several encoders in one folder, with the config.json of one of them."""
    folder = host.models("clip_vision")
    save_file(small_clip[1], folder / "beside.safetensors")
    (folder / "config.json").write_text(json.dumps(OFFICIAL["ViT-H"]), "utf-8")
    try:
        assert load(host, "beside.safetensors").image_size == 32
    finally:
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"num_hidden_layers": 5},
            r"describes .* \(64, 5, 8\), its model.safetensors has \(64, 3, 8\)",
        ),
        ({"model_type": "bert"}, "is a bert model: expected a CLIP or SigLIP vision model"),
        ({"hidden_act": "gelu_new"}, "activation 'gelu_new', ComfyUI has quick_gelu, gelu"),
        ({"projection_dim": 32}, "does not fit .* size mismatch for visual_projection.weight"),
    ],
    ids=["layers", "kind", "activation", "projection"],
)
def test_a_folder_whose_config_is_wrong(host: Any, small_clip: Any, change: Any, said: str) -> None:
    folder = save_folder(host.models("clip_vision") / "wrong", clip(SMALL_CLIP), small_clip[1])
    (folder / "config.json").write_text(json.dumps({**SMALL_CLIP, **change}), "utf-8")
    os.utime(folder / "model.safetensors", ns=(time.time_ns(), time.time_ns()))
    with pytest.raises(ValueError, match=said) as caught:
        load(host, "wrong")
    assert str(caught.value).startswith("wrong")


@pytest.mark.parametrize("left_out", ["pre_layrnorm.bias", "layers.1.mlp.fc2.weight"])
def test_a_file_that_lacks_weights(host: Any, small_clip: Any, left_out: str) -> None:
    state = {key: value for key, value in small_clip[1].items() if left_out not in key}
    save_file(state, host.models("clip_vision") / "lacking.safetensors")
    with pytest.raises(ValueError, match=rf"lacking.safetensors is incomplete: 1 .*{left_out}"):
        load(host, "lacking.safetensors")


def test_linked_files_and_folders_are_found(host: Any, small_clip: Any, tmp_path: Path) -> None:
    """Models on another disk, linked into the folder, as the host's own lists allow them."""
    folder = host.models("clip_vision")
    model = clip(SMALL_CLIP)
    elsewhere = save_folder(tmp_path / "elsewhere", model, small_clip[1])
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked.safetensors").symlink_to(elsewhere / "model.safetensors")
    names = host.module("ipadapter.host.encoders").encoder_names()
    assert {"linked", "linked.safetensors"} <= set(names)
    assert load(host, "linked").image_size == load(host, "linked.safetensors").image_size == 32


def test_changed_weights_are_read_anew(host: Any) -> None:
    model = clip(SMALL_CLIP)
    save_folder(host.models("clip_vision") / "changing", model, random_weights(model, seed=5))
    fingerprint = host.node("IPAdapterImageEncoderLoader").fingerprint_inputs
    before, first = fingerprint(clip_vision_name="changing"), load(host, "changing")
    save_folder(host.models("clip_vision") / "changing", model, random_weights(model, seed=6))
    assert fingerprint(clip_vision_name="changing") != before
    assert load(host, "changing") is not first


# What adapters are given ---------------------------------------------------------------------


def test_no_negative_picture_is_the_encoders_mean_grey(host: Any) -> None:
    """The reference's negative is zeros_like(pixel_values). A picture that the host's own
    preprocessing turns into exact zeros (its mean in whole steps) gives the same bits."""
    spec, vision = host.module("ipadapter.adapters.spec"), host.module("ipadapter.host.encode")
    mean = [102 / 255, 51 / 255, 153 / 255]
    model = clip(SMALL_CLIP)
    state = random_weights(model)
    folder = host.models("clip_vision") / "grey"
    save_folder(folder, model, state, image_mean=mean)
    encoder = load(host, "grey")
    with torch.inference_mode():
        like = torch.ones(3, 17, 64)
        got = vision.encode_nothing(encoder, like, spec.EmbedSource.HIDDEN)
        grey = torch.tensor(mean).expand(1, 32, 32, 3)
        assert torch.equal(got, encoder.encode_image(grey).penultimate_hidden_states)
        zeros = torch.zeros_like(pixel_values(grey))
        expected = with_weights(model, state)(zeros, output_hidden_states=True).hidden_states[-2]
        black = encoder.encode_image(torch.zeros_like(grey)).penultimate_hidden_states
    assert worst(got, expected) < 1e-3
    assert worst(got, black) > 0.1
    pooled = vision.encode_nothing(encoder, torch.ones(3, 48), spec.EmbedSource.POOLED)
    assert torch.equal(pooled, torch.zeros(1, 48))


def test_dino_is_no_clip_encoder(host: Any, tmp_path: Path) -> None:
    """DINOv2-large has the width of ViT-H's image_embeds: only its kind tells."""
    refusal = check(host, dino(tmp_path / "config.json"), "standard", "SD1.5")
    assert "needs ViT-H (1024), and the connected encoder is no CLIP model (Dinov2Model)" in refusal


def test_kolors_takes_pictures_of_336_pixels(host: Any) -> None:
    """Its encoder exists at two picture sizes of the same widths."""
    said = "needs ViT-L/14 at 336 px (1024), and the connected encoder takes pictures of 224 px"
    for size, refusal in ((224, said), (336, "")):
        encoder = tiny_clip_vision(hidden=1024)
        encoder.image_size = size
        found = check(host, encoder, "Kolors Plus", "Kolors")
        assert refusal in found and bool(found) == bool(refusal)


def dino(path: Path) -> Any:
    """A DINOv2-large encoder of one layer, made from giant's settings, which every host has."""
    import comfy.clip_vision

    config = Path(comfy.clip_vision.__file__).parent / "image_encoders" / "dino2_giant.json"
    large = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 1}
    settings = json.loads(config.read_text("utf-8")) | large
    path.write_text(json.dumps(settings), "utf-8")
    return comfy.clip_vision.ClipVisionModel(str(path))


def check(host: Any, encoder: Any, family: str, base: str) -> str:
    """What `check_encoder` says for an adapter of this family."""
    from support.models.adapters import synthetic_adapter

    parts = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(
        synthetic_adapter(family, base), "adapter.bin"
    )
    adapter = host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(parts)
    try:
        host.module("ipadapter.host.encode").check_encoder(encoder, adapter.name, adapter.spec)
    except ValueError as error:
        return str(error)
    return ""


# Full size -----------------------------------------------------------------------------------


@contextmanager
def full_size(host: Any, kind: str) -> Iterator[Path]:
    """An encoder of the published size with random weights, alone on the disk while it is used."""
    path = host.models("clip_vision") / "official.safetensors"
    save_file(random_weights(clip(OFFICIAL[kind])), path)
    try:
        yield path
    finally:
        path.unlink()


def encoded(encoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        output = encoder.encode_image(images)
    return output.image_embeds, output.penultimate_hidden_states


@pytest.mark.slow
@pytest.mark.parametrize("kind", OFFICIAL)
def test_official_encoders_equal_transformers(host: Any, kind: str, capsys: Any) -> None:
    """Both loaders give the same bits, and transformers' numbers."""
    images = pictures(OFFICIAL[kind]["image_size"], count=1)
    with full_size(host, kind) as path:
        started = time.monotonic()
        ours = encoded(load(host, path.name), images)
        seconds = time.monotonic() - started
        (loaded,) = host.call("CLIPVisionLoader", clip_name=path.name)
        theirs = encoded(loaded, images)
        del loaded
        model = with_weights(clip(OFFICIAL[kind]), load_file(path))
        with torch.inference_mode():
            output = model(pixel_values(images), output_hidden_states=True)
    expected = (output.image_embeds, output.hidden_states[-2])
    differences = [worst(got, wanted) for got, wanted in zip(ours, expected, strict=True)]
    with capsys.disabled():
        print(f"\n{kind}: loaded and encoded in {seconds:.1f} s, differences {differences}")
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert max(differences) < 1e-4  # the same fp16 weights, computed in fp32 on both sides
