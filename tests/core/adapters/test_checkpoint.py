"""Adapter files of every layout open lazily; everything else is refused with its name and
what it is.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.models.adapters import flat, shapes_of, synthetic_adapter
from support.models.modelfiles import adapter_file

from ipadapter.adapters.checkpoint import checkpoint_from_dict, read_checkpoint
from ipadapter.adapters.families import Family
from ipadapter.files.tensors import TensorMap

TINY = synthetic_adapter(Family.STANDARD, "SD1.5", tiny=True, device="cpu")


def write(path: Path, layout: str) -> Path:
    if layout == "nested":
        torch.save(TINY, path)
    elif layout == "nested adapter_modules":
        torch.save({"image_proj": TINY["image_proj"], "adapter_modules": TINY["ip_adapter"]}, path)
    elif layout == "legacy pickle":
        torch.save(TINY, path, _use_new_zipfile_serialization=False)
    elif layout == "training":
        state = {k.replace("image_proj.", "image_proj_model."): v for k, v in flat(TINY).items()}
        save_file(state | {"unet.conv_in.weight": torch.zeros(1)}, path)
    else:
        save_file(flat(TINY, layout), path, metadata={"author": "someone"})
    return path


LAYOUTS = {
    "ip_adapter": ".safetensors",
    "adapter_modules": ".safetensors",
    "training": ".safetensors",
    "nested": ".bin",
    "nested adapter_modules": ".bin",
    "legacy pickle": ".bin",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_checkpoint(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / f"adapter{LAYOUTS[layout]}", layout)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.name, checkpoint.path) == (path.name, path)
    for half in ("image_proj", "ip_adapter"):
        tensors = getattr(checkpoint, half)
        assert tensors.shapes() == shapes_of(TINY[half])
        assert all(torch.equal(tensors[key], value) for key, value in TINY[half].items())


@pytest.mark.parametrize("extension", [".bin", ".safetensors", ".pt", ""])
def test_content_decides_not_the_extension(tmp_path: Path, extension: str) -> None:
    assert read_checkpoint(write(tmp_path / f"a{extension}", "nested")).image_proj
    assert read_checkpoint(write(tmp_path / f"b{extension}", "ip_adapter")).image_proj


def test_dicts_flat_or_nested() -> None:
    for state in (TINY, flat(TINY), {"state_dict": flat(TINY)}, flat(TINY) | {"epoch": 3}):
        checkpoint = checkpoint_from_dict(state, "from a node")
        assert checkpoint.ip_adapter.shapes() == shapes_of(TINY["ip_adapter"])


def test_resampler_saved_from_diffusers_names() -> None:
    plus = synthetic_adapter(Family.PLUS, "SD1.5", tiny=True)
    renames = {
        ".0.norm1.": ".ln0.", ".0.norm2.": ".ln1.", ".0.to_": ".attn.to_",
        ".1.0.": ".ff.0.", ".1.1.": ".ff.1.net.0.proj.", ".1.3.": ".ff.1.net.2.",
    }  # fmt: skip
    theirs = {}
    for key, value in plus["image_proj"].items():
        head, index, rest = key.partition("layers.")[0], *key.partition("layers.")[1:]
        if index:
            number, _, tail = rest.partition(".")
            for ours, other in renames.items():
                tail = f".{tail}".replace(ours, other)[1:]
            key = f"{head}layers.{number}.{tail}"
        theirs[key] = value
    assert any(".attn.to_kv" in key for key in theirs)
    checkpoint = checkpoint_from_dict(plus | {"image_proj": theirs}, "x")
    assert checkpoint.image_proj.shapes() == shapes_of(plus["image_proj"])


def test_opening_reads_only_the_header(tmp_path: Path) -> None:
    path = adapter_file(tmp_path / "big.safetensors", synthetic_adapter(Family.PLUS, "SDXL"))
    assert path.stat().st_size > 800_000_000
    checkpoint = read_checkpoint(path)
    assert len(checkpoint.ip_adapter) == 140
    assert checkpoint.ip_adapter.shape("139.to_k_ip.weight") == (1280, 2048)
    assert checkpoint.image_proj["latents"].shape == (1, 16, 1280)


@pytest.mark.parametrize("low_bytes", [0x7B, 0x4B50, 0x0280, 0x3C68])
def test_the_length_of_a_header_may_look_like_another_format(
    tmp_path: Path, low_bytes: int
) -> None:
    """'{', 'PK', a pickle's first bytes and '<h' are lengths too."""
    stored = write(tmp_path / "a.safetensors", "ip_adapter").read_bytes()
    (length,) = struct.unpack("<Q", stored[:8])
    span = 1 << (8 if low_bytes < 256 else 16)
    padding = (low_bytes - length) % span
    text = stored[8 : 8 + length] + b" " * padding
    path = tmp_path / "b.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + stored[8 + length :])
    assert len(text) % span == low_bytes
    assert len(read_checkpoint(path).ip_adapter) == 32


def safetensors_bytes(tmp_path: Path) -> bytes:
    return write(tmp_path / "whole.safetensors", "ip_adapter").read_bytes()


def zip_bytes(tmp_path: Path) -> bytes:
    return write(tmp_path / "whole.bin", "nested").read_bytes()


def with_header(header: object, size: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * size


def entry(shape: list, begin: int, end: int) -> dict:
    return {"x": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}


BAD_BYTES = {
    "empty": (lambda _: b"", "is empty (0 bytes)"),
    "zeros": (lambda _: b"\0" * 5000, "filled with zeros"),
    "html": (lambda _: b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    "lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "json": (lambda _: b'{"error": "access denied"}', "is a JSON text"),
    "text": (lambda _: b"Entry not found, try again later", "neither a safetensors nor a torch"),
    "short": (lambda _: b"abc", "neither a safetensors nor a torch"),
    "cut header": (lambda p: safetensors_bytes(p)[:500], "is truncated: it ends within"),
    "cut data": (lambda p: safetensors_bytes(p)[:-1000], "its header promises"),
    "cut zip": (lambda p: zip_bytes(p)[:-2000], "is a truncated or damaged torch file"),
    "no json": (lambda _: struct.pack("<Q", 9) + b"not json!", "a damaged safetensors header"),
    "no entry": (lambda _: with_header({"x": 3}), "a damaged safetensors header"),
    "lying shape": (lambda _: with_header(entry([1 << 40] * 2, 0, 4), 4), "safetensors header"),
    "negative": (lambda _: with_header(entry([-1, -1], 0, 4), 4), "a damaged safetensors header"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BYTES)
def test_broken_files_say_what_was_found(tmp_path: Path, case: str) -> None:
    make, message = BAD_BYTES[case]
    path = tmp_path / "ip-adapter.safetensors"
    path.write_bytes(make(tmp_path))
    with pytest.raises(ValueError, match=r".") as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert "ip-adapter.safetensors" in text and message in text
    assert "download it again" in text.lower()


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "evil.bin", tmp_path / "owned"
    torch.save(
        {"image_proj": Payload(target), "ip_adapter": {}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=r"evil\.bin contains Python objects or code"):
        read_checkpoint(path)
    assert not target.exists()


def test_a_pickled_list_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(ValueError, match=r"list\.bin holds a list, expected a dict"):
        read_checkpoint(tmp_path / "list.bin")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.bin"):
        read_checkpoint(tmp_path / "gone.bin")


FOREIGN = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": "is a LoRA",
    "unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight": "is a LoRA",
    "control_model.input_blocks.0.0.weight": "is a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "is a ControlNet",
    "model.diffusion_model.input_blocks.0.0.weight": "is a full checkpoint",
    "down_blocks.0.attentions.0.norm.weight": "is a diffusion model (UNet)",
    "double_blocks.0.img_attn.qkv.weight": "is a diffusion model (transformer)",
    "vision_model.embeddings.patch_embedding.weight": "is a CLIP vision encoder",
    "visual.conv1.weight": "is a CLIP model in OpenCLIP layout",
    "text_model.encoder.layers.0.mlp.fc1.weight": "is a text encoder",
    "decoder.conv_in.weight": "is a VAE",
    "mystery": "is not an IP-Adapter: an IP-Adapter has tensors named 'image_proj...'",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_other_models_are_named(tmp_path: Path, key: str) -> None:
    save_file({key: torch.zeros(4)}, tmp_path / "chosen.safetensors")
    with pytest.raises(ValueError, match=r".") as caught:
        read_checkpoint(tmp_path / "chosen.safetensors")
    text = str(caught.value)
    assert text.startswith("chosen.safetensors") and FOREIGN[key] in text
    assert "Choose another file" in text


@pytest.mark.parametrize("half", ["image_proj", "ip_adapter"])
def test_half_an_adapter(half: str) -> None:
    other = {"image_proj": "ip_adapter", "ip_adapter": "image_proj"}[half]
    with pytest.raises(ValueError, match=rf"a\.bin is incomplete: it has no '{other}"):
        checkpoint_from_dict({half: TINY[half], other: {}}, "a.bin")


def test_tensor_map_is_lazy_and_a_mapping() -> None:
    read: list[str] = []

    def load(key: str) -> torch.Tensor:
        read.append(key)
        return torch.zeros(2, 3)

    tensors = TensorMap({"a": (2, 3)}, load)
    assert (list(tensors), len(tensors), tensors.shape("a")) == (["a"], 1, (2, 3))
    assert "b" not in tensors and tensors.get("b") is None
    assert not read
    assert tensors["a"].shape == (2, 3) and read == ["a"]
