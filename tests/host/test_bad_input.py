"""Bad input: each is refused at the node that received it, in words that say what was expected,
what was found and what to do. Nothing of it may surface as a shape error while sampling."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.hosts.scene import Scene
from support.models.adapters import flat, synthetic_adapter
from support.models.modelfiles import encoder_shapes, lora_shapes, sparse_safetensors
from support.models.unets import (
    FULL_SD15,
    FULL_SDXL,
    TINY_SD15,
    Geometry,
    build_empty_model,
    host_config,
    host_unet,
    patcher,
    random_adapter,
)
from support.models.vision import tiny_clip_vision

from ipadapter.errors import plain_text

# What a library says when it meets input that nobody checked.
RAW = ("mat1 and mat2", "size mismatch", "shapes cannot be multiplied", "must match the size")


@pytest.fixture(scope="module")
def scene(host: Any) -> Scene:
    return Scene.build(host, TINY_SD15)


def refused(call: Callable[[], object], *said: str, kind: type[Exception] = ValueError) -> str:
    """The message of a refusal, which says all of `said`, in this order."""
    with pytest.raises(kind) as caught:
        call()
    message, position = str(caught.value), 0
    for part in said:
        assert part in message[position:], f"{part!r} is not said (or too early) in: {message}"
        position = message.index(part, position) + len(part)
    assert not any(raw in message for raw in RAW), message
    without_code = plain_text(caught.value)
    assert without_code != message, f"no code ends: {message}"
    assert without_code.endswith("."), message
    return message


# The wrong base ---------------------------------------------------------------------------------

FULL_SD2 = replace(FULL_SD15, name="SD2", context_dim=1024)


@cache
def empty_model(geometry: Geometry) -> Any:
    return build_empty_model(geometry)


@pytest.mark.parametrize(
    ("base", "geometry"),
    [
        ("SD1.5", FULL_SDXL),
        ("SD1.5", FULL_SD2),
        ("SDXL", FULL_SD15),
        ("SDXL", FULL_SD2),
        ("SD2", FULL_SD15),
    ],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("family", ["standard", "Plus"])
def test_an_adapter_of_another_base(
    scene: Scene, base: str, geometry: Geometry, family: str
) -> None:
    adapter = synthetic_adapter(family, base)
    refused(
        lambda: scene.apply(empty_model(geometry), ipadapter=adapter),
        "does not fit this MODEL",
        f"made for {base} (",
        f"cross-attention width {adapter['ip_adapter']['1.to_k_ip.weight'].shape[1]}",
        f"the MODEL is {geometry.name} (",
        f"cross-attention width {geometry.context_dim}",
        f"Load an adapter made for {geometry.name}, or a checkpoint of {base}",
    )


def test_an_adapter_with_fewer_layers(scene: Scene) -> None:
    small = random_adapter(replace(TINY_SD15, widths=TINY_SD15.widths[:4]), embed_dim=48)
    refused(
        lambda: scene.apply(ipadapter=small), "custom UNet (4 layers", "4 layers of", "16 layers of"
    )


# A MODEL without slots for text ------------------------------------------------------------------


def flux_model() -> Any:
    """A tiny Flux in the host's own classes."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models
    from comfy.ldm.flux.model import Flux, FluxParams

    newer = {field.name for field in fields(FluxParams)} & {"txt_ids_dims"}  # beyond 0.3.75
    config = {
        **{name: [] for name in newer},
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 32,
        "context_in_dim": 64,
        "hidden_size": 64,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [8, 12, 12],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": False,
    }
    family = comfy.supported_models.Flux({**config, "disable_unet_model_creation": True})
    model = comfy.model_base.Flux(family)
    model.diffusion_model = Flux(
        **config, dtype=torch.float32, device="meta", operations=comfy.ops.manual_cast
    )
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_a_model_without_cross_attention(scene: Scene) -> None:
    refused(
        lambda: scene.apply(flux_model()),
        "does not fit this MODEL",
        "the MODEL is Flux.1 (2 layers of width 64)",
        "Load an adapter made for Flux.1",
    )


def test_a_video_unet(scene: Scene) -> None:
    config = {
        **host_config(TINY_SD15),
        "use_temporal_attention": True,
        "use_temporal_resblock": True,
        "merge_strategy": "learned_with_images",
        "video_kernel_size": [3, 1, 1],
        "extra_ff_mix_layer": True,
    }
    model = patcher(host_unet(config, "meta"), config)
    refused(lambda: scene.apply(model), "is a video UNet", "Load an SD1.5, SD2 or SDXL checkpoint")


def test_no_model(scene: Scene) -> None:
    values = {"ipadapter": scene.adapter, "clip_vision": scene.clip_vision}
    image = torch.rand(1, 8, 8, 3)
    refused(
        lambda: scene.host.call("IPAdapterAdvanced", model=None, image=image, **values),
        "No MODEL",
        "connect",
    )


# The wrong image encoder -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plus", "hidden", "projected", "needed", "got"),
    [
        (True, 1664, 64, "ViT-H (1280)", "ViT-bigG (1664)"),
        (True, 1024, 64, "ViT-H (1280)", "ViT-L"),
        (False, 64, 1280, "ViT-H (1024)", "ViT-bigG (1280)"),
        (False, 64, 768, "ViT-H (1024)", "ViT-L"),
        (False, 64, 48, "ViT-H (1024)", "width 48"),
    ],
)
def test_the_wrong_encoder_is_named_with_its_width(
    scene: Scene, plus: bool, hidden: int, projected: int, needed: str, got: str
) -> None:
    adapter = random_adapter(TINY_SD15, plus=plus, embed_dim=1280 if plus else 1024)
    encoder = tiny_clip_vision(projected=projected, hidden=hidden)
    refused(
        lambda: scene.apply(ipadapter=adapter, clip_vision=encoder),
        f"needs {needed}, got",
        got,
        "Load",
        "models/clip_vision",
    )


def test_no_encoder(scene: Scene) -> None:
    adapter = random_adapter(TINY_SD15, plus=True, embed_dim=1280)
    refused(
        lambda: scene.apply(ipadapter=adapter, clip_vision=None),
        "needs a CLIP Vision encoder (ViT-H (1280)) and none is connected",
        "models/clip_vision",
    )


# Files that are no adapters ----------------------------------------------------------------------


def tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    sparse_safetensors(path, shapes)


LORA = lora_shapes(768, rank=4)
CONTROLNET = {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3), "control_model.x": (4,)}
CHECKPOINT = {"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3)}
ENCODER = encoder_shapes(1280, 1024, 224)
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "decoder.conv_in.bias": (8,)}
HALF = {"image_proj.proj.weight": (8, 4), "image_proj.norm.weight": (2,)}


@pytest.mark.parametrize(
    ("name", "shapes", "said"),
    [
        ("lora", LORA, ("is a LoRA", "image_proj", "models/loras")),
        ("controlnet", CONTROLNET, ("is a ControlNet", "image_proj", "models/controlnet")),
        ("checkpoint", CHECKPOINT, ("is a full checkpoint", "models/checkpoints")),
        ("encoder", ENCODER, ("is a CLIP vision encoder", "models/clip_vision")),
        ("vae", VAE, ("is a VAE", "models/vae")),
        ("half", HALF, ("is incomplete", "'ip_adapter...'", "Download it again")),
        ("odd", {"weight": (3,)}, ("is not an IP-Adapter", "weight", "Choose another file")),
        ("none", {}, ("holds no tensors", "Choose another file")),
    ],
)
def test_other_models_are_recognised(
    host: Any, name: str, shapes: dict[str, tuple[int, ...]], said: tuple[str, ...]
) -> None:
    file = f"{name}.safetensors"
    tensors(host.models("ipadapter") / file, shapes)
    refused(lambda: load(host, file), file, *said)


def load(host: Any, file: str) -> Any:
    return host.call("IPAdapterModelLoader", ipadapter_file=file)


def whole_file(path: Path) -> bytes:
    nested = random_adapter(replace(TINY_SD15, widths=(32, 32)), embed_dim=48)
    save_file(flat(nested), path)
    return path.read_bytes()


def bad_header(entry: dict[str, Any]) -> bytes:
    text = json.dumps({"image_proj.proj.weight": entry}).encode()
    return struct.pack("<Q", len(text)) + text


LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 98183288\n"
)
DOWNLOAD = "ownload it again"
BYTES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty.safetensors": (b"", ("is empty (0 bytes)", DOWNLOAD)),
    "zeros.safetensors": (bytes(4096), ("filled with zeros", DOWNLOAD)),
    "page.safetensors": (b"<!DOCTYPE html>\n<html>Sign in</html>", ("a web page", DOWNLOAD)),
    "page.bin": (b"\n  <html lang='en'></html>", ("a web page", DOWNLOAD)),
    "pointer.safetensors": (LFS, ("a Git LFS pointer", DOWNLOAD)),
    "error.safetensors": (b'{"error": "gated repo"}', ("a JSON text", DOWNLOAD)),
    "noise.safetensors": (bytes(range(256)) * 8, ("neither a safetensors nor", DOWNLOAD)),
    "noise.bin": (b"\xff" * 2048, ("neither a safetensors nor", DOWNLOAD)),
    "cut_zip.bin": (b"PK\x03\x04" + bytes(64), ("truncated or damaged", DOWNLOAD)),
    "liar.safetensors": (
        bad_header({"dtype": "F16", "shape": [4, 4], "data_offsets": [0, 8]}),
        ("damaged safetensors header", DOWNLOAD),
    ),
}


@pytest.mark.parametrize("file", BYTES)
def test_damaged_files_are_named_for_what_they_are(host: Any, file: str) -> None:
    content, said = BYTES[file]
    (host.models("ipadapter") / file).write_bytes(content)
    refused(lambda: load(host, file), file, *said)


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_truncated_file(host: Any, kept: float) -> None:
    path = host.models("ipadapter") / f"truncated_{kept}.safetensors"
    content = whole_file(path)
    path.write_bytes(content[: int(len(content) * kept)])
    refused(lambda: load(host, path.name), path.name, "truncated", DOWNLOAD)


def test_a_truncated_torch_file(host: Any) -> None:
    path = host.models("ipadapter") / "truncated.bin"
    torch.save(random_adapter(replace(TINY_SD15, widths=(32, 32))), path)
    path.write_bytes(path.read_bytes()[:-2000])
    refused(lambda: load(host, path.name), path.name, "truncated or damaged", DOWNLOAD)


class Attack:
    """Unpickling it would write a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "code ran")


@pytest.mark.parametrize("zipped", [True, False], ids=["torch zip", "plain pickle"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_code_in_a_pickle_does_not_run(
    host: Any, tmp_path: Path, suffix: str, zipped: bool
) -> None:
    mark = tmp_path / "mark"
    path = host.models("ipadapter") / f"attack_{zipped}{suffix}"
    state = {"image_proj": {"proj.weight": torch.zeros(8, 4)}, "ip_adapter": Attack(mark)}
    if zipped:
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    message = refused(lambda: load(host, path.name), path.name)
    assert "code" in message or "truncated or damaged" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "file", ["gone.safetensors", "../checkpoints/x.safetensors", "/etc/passwd", "", "a\0b"]
)
def test_only_listed_files_are_opened(host: Any, file: str) -> None:
    refused(
        lambda: load(host, file),
        "is not in the ipadapter folder",
        "pick another",
        kind=FileNotFoundError,
    )


# Inputs of the Apply node ------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
HOLE = torch.ones(1, 8, 8)
HOLE[0, 0, 0] = NAN
INPUTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "empty batch": (
        {"image": torch.zeros(0, 32, 32, 3)},
        ("at least one image", "(0, 32, 32, 3)", "Connect"),
    ),
    "empty negative": (
        {"image_negative": torch.zeros(0, 32, 32, 3)},
        ("at least one image", "(0, 32, 32, 3)", "Connect"),
    ),
    "picture of no size": ({"image": torch.zeros(1, 0, 32, 3)}, ("expected (images, height",)),
    "latents as picture": ({"image": torch.zeros(1, 4, 16, 16)}, ("1 to 4 channels",)),
    "mask as picture": ({"image": torch.zeros(1, 16, 16)}, ("expected (images, height",)),
    "picture of NaN": ({"image": torch.full((1, 16, 16, 3), NAN)}, ("image", "NaN")),
    "weight NaN": ({"weight": NAN}, ("Weight 0 is nan", "expected a finite number")),
    "weight infinite": ({"weight": INF}, ("Weight 0 is inf", "expected a finite number")),
    "weight far out": ({"weight": -1e30}, ("Weight 0 is -1e+30", "at most 1000")),
    "no weights": ({"weight": []}, ("list of weights is empty",)),
    "start after end": (
        {"start_at": 0.8, "end_at": 0.2},
        ("start_at 0.8 lies after end_at 0.2", "Swap"),
    ),
    "start NaN": ({"start_at": NAN}, ("start_at is nan", "expected a finite number")),
    "end beyond 1": ({"end_at": 30}, ("end_at is 30", "to 1 (last step)")),
    "mask of rank 1": ({"attn_mask": torch.ones(8)}, ("attn_mask has shape (8,)", "Connect")),
    "image as mask": (
        {"attn_mask": torch.ones(1, 8, 8, 3)},
        ("attn_mask has shape (1, 8, 8, 3)", "expected (masks, height, width)", "Convert"),
    ),
    "mask of no size": ({"attn_mask": torch.ones(1, 0, 8)}, ("attn_mask has shape (1, 0, 8)",)),
    "mask with NaN": ({"attn_mask": HOLE}, ("attn_mask holds NaN", "expected 0 (off) to 1 (on)")),
    "weight_type": ({"weight_type": "strong"}, ("weight_type is 'strong'", "'linear'")),
    "combine_embeds": ({"combine_embeds": "sum"}, ("combine_embeds is 'sum'", "'concat'")),
    "embeds_scaling": ({"embeds_scaling": "K only"}, ("embeds_scaling is 'K only'", "'V only'")),
    "ipadapter is text": ({"ipadapter": "plus"}, ("received a str", "IPAdapter Model Loader")),
    "ipadapter is None": ({"ipadapter": None}, ("received a NoneType", "Model Loader")),
    "empty pipeline": (
        {"ipadapter": {"ipadapter": {"file": None, "model": None}}},
        ("holds no adapter", "Pick another preset"),
    ),
    "raw LoRA": (
        {"ipadapter": {"image_proj": {}, "ip_adapter": {}}},
        ("holds no tensors",),
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_bad_inputs_of_the_apply_node(scene: Scene, name: str) -> None:
    given, said = INPUTS[name]
    refused(lambda: scene.apply(**given), *said)


def test_an_unknown_choice_of_the_simple_node(scene: Scene) -> None:
    pipeline = {
        "ipadapter": {"file": "x", "model": scene.adapter},
        "clipvision": {"model": scene.clip_vision},
    }
    values = {"image": torch.rand(1, 8, 8, 3), "weight": 1.0, "start_at": 0.0, "end_at": 1.0}
    refused(
        lambda: scene.host.call(
            "IPAdapter", model=scene.model, ipadapter=pipeline, weight_type="strong", **values
        ),
        "weight_type is 'strong'",
        "'standard', 'prompt is more important', 'style transfer'",
    )


@pytest.mark.parametrize("name", ["empty batch", "weight NaN", "start after end", "weight_type"])
def test_a_refusal_leaves_the_model_as_it_was(scene: Scene, name: str) -> None:
    before = scene.sample()
    given, _ = INPUTS[name]
    with pytest.raises(ValueError, match=r"."):
        scene.apply(**given)
    assert not scene.model.model_options["transformer_options"].get("patches_replace")
    assert torch.equal(scene.sample(), before)
