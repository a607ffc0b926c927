"""Model files as users really have them: cut off, mistaken for another kind, dangerous, damaged."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ipadapter.adapters.families import Family
from ipadapter.adapters.vision import EmbedSource
from ipadapter.pictures.embeds import AdapterLabel, ImageEmbeds, save_embeds

from .adapters import Nested, Shapes, flat, synthetic_adapter
from .encoders import SMALL, clip, random_weights, save_folder
from .modelfiles import adapter_file, encoder_shapes, lora_shapes, sparse_safetensors

FOUR_LAYERS: dict[str, Any] = {"layer_widths": (320,) * 4}  # what the random checkpoint's UNet has
PAGE = b"<!DOCTYPE html>\n<html><head><title>401 Unauthorized</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44642768\n"


class LeavesAMark:
    """Unpickling this makes a file: what code in a model file would do first."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.mark), "w")


def write_adapters(folder: Path, mark: Path) -> None:
    """A good adapter for the random checkpoint and the tiny encoder, and bad ones made from it;
    `mark` is what a dangerous one would write."""
    folder.mkdir(parents=True, exist_ok=True)
    good = folder / "good.safetensors"
    four = {"pooled": 48, **FOUR_LAYERS}
    write_adapter(good, synthetic_adapter(Family.STANDARD, "SD1.5", device="cpu", **four))
    _write_broken(folder, good.read_bytes(), mark)
    _write_other_kinds(folder)
    _write_damaged(folder, load_file(good))
    for base in ("SD1.5", "SDXL"):
        adapter_file(folder / f"{base}.safetensors", synthetic_adapter(Family.STANDARD, base))
    plus = synthetic_adapter(Family.PLUS, "SD1.5", **FOUR_LAYERS)
    adapter_file(folder / "plus_vit-h.safetensors", plus)
    standard = synthetic_adapter(Family.STANDARD, "SD1.5", **FOUR_LAYERS)
    adapter_file(folder / "standard_vit-h.safetensors", standard)
    write_adapter(folder / "face.safetensors", faceid())


def faceid() -> Nested:
    """A FaceID adapter for the random checkpoint, without a LoRA."""
    return synthetic_adapter(Family.FACEID, "SD1.5", device="cpu", lora=False, **FOUR_LAYERS)


def write_adapter(path: Path, nested: Nested) -> None:
    """An adapter with its weights."""
    save_file({key: value.half() for key, value in flat(nested).items()}, path)


def _write_broken(folder: Path, good: bytes, mark: Path) -> None:
    (folder / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (folder / "cut_header.safetensors").write_bytes(good[:90])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "zeros.safetensors").write_bytes(bytes(4096))
    (folder / "page.safetensors").write_bytes(PAGE)
    (folder / "lfs.safetensors").write_bytes(POINTER)
    torch.save({"image_proj": LeavesAMark(mark)}, folder / "code.bin")
    (folder / "old_code.bin").write_bytes(_old_pickle(mark))
    torch.save({"image_proj.x": torch.ones(4)}, folder / "whole.bin")
    whole = (folder / "whole.bin").read_bytes()
    (folder / "whole.bin").unlink()
    (folder / "cut.bin").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(folder / "archive.bin", "w") as archive:
        archive.writestr("readme.txt", "unpack me")
    (folder / "shapes.safetensors").write_bytes(absurd_header([1 << 40, 1 << 40]))
    (folder / "negative.safetensors").write_bytes(absurd_header([-1, 4]))


def _old_pickle(mark: Path) -> bytes:
    """The same danger in the format from before torch 1.6."""
    import pickle

    return pickle.dumps({"image_proj": LeavesAMark(mark)}, protocol=2)


def absurd_header(shape: list[int]) -> bytes:
    """A safetensors file of a few bytes whose header promises a tensor of this shape."""
    size = 2 * abs(shape[0] * shape[1])
    entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"image_proj.proj.weight": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def _write_other_kinds(folder: Path) -> None:
    sparse_safetensors(folder / "lora.safetensors", lora_shapes(768, rank=4))
    sparse_safetensors(folder / "encoder.safetensors", encoder_shapes(1280, 1024, 224))
    kinds: dict[str, Shapes] = {
        "controlnet": {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)},
        "checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
        "flux": {"ip_adapter_proj_model.proj.weight": (64, 64)},
        "csgo": {
            "content_image_proj.norm.weight": (2048,),
            "style_image_proj.latents": (1, 32, 1280),
            "ip_adapter.1.to_k_ip.weight": (640, 2048),
        },
        "unknown": {"something.weight": (2, 2)},
    }
    for name, shapes in kinds.items():
        sparse_safetensors(folder / f"{name}.safetensors", shapes)


def _write_damaged(folder: Path, good: Mapping[str, torch.Tensor]) -> None:
    """Whole files with something in them that does not belong, or something left out."""
    layer, projector = "ip_adapter.3.to_v_ip.weight", "image_proj.proj.weight"
    without = {key: value for key, value in good.items() if key != layer}
    halved = {key: value for key, value in good.items() if not key.startswith("ip_adapter")}
    nan = torch.full_like(good[projector], float("nan"))
    endless = good[layer].clone()
    endless[0, 0] = float("inf")
    for name, state in {
        "missing_key": without,
        "no_layers": halved,
        "extra_key": {**good, "image_proj.extra.weight": torch.ones(2)},
        "nan": {**good, projector: nan},
        "inf_layer": {**good, layer: endless},
        "wrong_shape": {**good, layer: torch.ones(320, 5)},
        "no_rows": {**good, projector: torch.ones(0, 48)},
    }.items():
        save_file(state, folder / f"{name}.safetensors")


def write_encoders(folder: Path) -> None:
    """Files and folders that are no image encoder, or not a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = sparse_safetensors(folder / "whole.safetensors", encoder_shapes(64, 48, 28))
    data = whole.read_bytes()
    whole.unlink()
    (folder / "cut_encoder.safetensors").write_bytes(data[: len(data) // 2])
    (folder / "page_encoder.safetensors").write_bytes(PAGE)
    sparse_safetensors(folder / "lora_encoder.safetensors", lora_shapes(768, rank=4))
    sparse_safetensors(folder / "few_layers.safetensors", encoder_shapes(64, 48, 28))
    (folder / "no_weights").mkdir(exist_ok=True)
    (folder / "no_weights" / "config.json").write_text('{"model_type": "clip_vision_model"}')
    (folder / "bert").mkdir(exist_ok=True)
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    sparse_safetensors(folder / "bert" / "model.safetensors", {"encoder.weight": (2, 2)})


def write_tiny_encoder(folder: Path, projection: bool = True) -> None:
    """A Hugging Face folder with a small CLIP image encoder of random weights."""
    model = clip({**SMALL, "projection_dim": 48})
    state = random_weights(model)
    if not projection:
        del state["visual_projection.weight"]
    save_folder(folder, model, state)


def write_tiny_transformer(path: Path) -> None:
    """A diffusion transformer (SD3's kind) of one block: a MODEL without a UNet."""
    width, block = 64, "joint_blocks.0."
    shapes: Shapes = {"pos_embed": (1, 16, width), "x_embedder.proj.weight": (width, 16, 2, 2)}
    shapes["x_embedder.proj.bias"] = (width,)
    for name, outputs, inputs in (
        ("t_embedder.mlp.0", width, 256),
        ("t_embedder.mlp.2", width, width),
        ("y_embedder.mlp.0", width, width),
        ("y_embedder.mlp.2", width, width),
        ("context_embedder", width, 32),
        (f"{block}context_block.attn.qkv", 3 * width, width),
        (f"{block}context_block.adaLN_modulation.1", 2 * width, width),
        (f"{block}x_block.attn.qkv", 3 * width, width),
        (f"{block}x_block.attn.proj", width, width),
        (f"{block}x_block.mlp.fc1", 4 * width, width),
        (f"{block}x_block.mlp.fc2", width, 4 * width),
        (f"{block}x_block.adaLN_modulation.1", 6 * width, width),
        ("final_layer.linear", width, width),
        ("final_layer.adaLN_modulation.1", 2 * width, width),
    ):
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    sparse_safetensors(path, shapes)


def write_embeds(folder: Path, outside: Path) -> None:
    """Embeds files that are none, and one for an encoder of another width."""
    label = AdapterLabel("other.safetensors", "standard", "SDXL", "ViT-bigG (1280)", 4)
    foreign = ImageEmbeds(torch.ones(1, 1280), EmbedSource.POOLED, made_for=label)
    save_embeds(foreign, folder / "foreign")
    save_embeds(foreign, outside / "outside")
    (secret,) = outside.glob("outside*")
    (folder / "link.ipadpt.safetensors").symlink_to(secret)
    (folder / "page.ipadpt").write_bytes(PAGE)
    torch.save(LeavesAMark(outside / "embeds_mark"), folder / "code.ipadpt")
    save_file({"x": torch.ones(2)}, folder / "plain.ipadpt.safetensors")
    torch.save(torch.full((1, 768), float("nan")), folder / "nan.ipadpt")


def write_faces(folder: Path, picture: Path) -> None:
    """Face models that know one photograph, and the photograph."""
    from tools.face_models import astronaut, write_pack

    if not (folder / "models" / "buffalo_l").exists():
        write_pack(folder, "buffalo_l")
    Image.fromarray(astronaut()).save(picture)
