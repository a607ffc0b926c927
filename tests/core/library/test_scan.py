"""A folder of model files is identified by content, from headers, and remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.models.adapters import synthetic_adapter
from support.models.modelfiles import (
    ENCODER_FILES,
    adapter_file,
    encoder_shapes,
    lora_shapes,
    openclip_shapes,
    sparse_safetensors,
)

from ipadapter.adapters.families import Family
from ipadapter.adapters.vision import EmbedSource
from ipadapter.files.kinds import Kind
from ipadapter.library import scan as files
from ipadapter.library.scan import EncoderFacts, ModelFile, read_contents, scan


def test_scan_lists_subfolders_and_several_roots(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in ("first/a.safetensors", "first/sub/deep/b.bin", "first/readme.txt", "second/c.pt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (second / "a.safetensors").write_bytes(b"")
    listing = scan([first, second, tmp_path / "absent"])
    assert [file.name for file in listing] == [
        "a.safetensors",
        os.path.join("sub", "deep", "b.bin"),
        "c.pt",
    ]
    assert listing.files[0].path == first / "a.safetensors"
    assert listing.folders == (first, second, tmp_path / "absent")


def test_identification_reads_headers_only_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = adapter_file(tmp_path / "x.safetensors", synthetic_adapter(Family.PLUS, "SDXL"))
    opened: list[Path] = []
    monkeypatch.setattr(
        files, "read_contents", lambda p: opened.append(p) or ModelFile(Kind.ADAPTER)
    )
    for _ in range(3):
        assert next(iter(scan([tmp_path]))).contents.kind is Kind.ADAPTER
    assert opened == [path]
    os.utime(path, ns=(1, 1))
    assert next(iter(scan([tmp_path]))).contents.kind is Kind.ADAPTER
    assert opened == [path, path]


def test_memory_is_bounded(tmp_path: Path) -> None:
    memory = files._Memory(2)
    for i in range(5):
        (tmp_path / f"{i}.bin").write_bytes(b"")
        memory.contents(tmp_path / f"{i}.bin")
    assert len(memory._known) == 2


def test_a_vanished_file_is_a_problem_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    (file,) = scan([tmp_path])
    file.path.unlink()
    assert "cannot be read" in file.contents.problem


@pytest.mark.parametrize("name", ENCODER_FILES)
def test_encoders(tmp_path: Path, name: str) -> None:
    hidden, projected, size = ENCODER_FILES[name]
    facts = EncoderFacts(hidden, projected, size, 14, openclip=False)
    path = sparse_safetensors(tmp_path / "model.safetensors", encoder_shapes(*ENCODER_FILES[name]))
    assert read_contents(path) == ModelFile(Kind.CLIP_VISION, encoder=facts)
    path = sparse_safetensors(tmp_path / "open.bin", openclip_shapes(*ENCODER_FILES[name]))
    openclip = read_contents(path).encoder
    assert openclip == EncoderFacts(hidden, projected, size, 14, openclip=True)
    assert facts.width(EmbedSource.POOLED) == projected
    assert facts.width(EmbedSource.HIDDEN) == hidden


def test_encoder_without_projection_and_siglip(tmp_path: Path) -> None:
    path = sparse_safetensors(tmp_path / "a.safetensors", encoder_shapes(1280, 0, 224))
    bare = read_contents(path)
    assert bare.encoder and bare.encoder.projected == 0
    assert "no visual_projection, so no image_embeds" in bare.summary
    shapes = encoder_shapes(1152, 0, 384)
    del shapes["vision_model.embeddings.class_embedding"]
    shapes["vision_model.embeddings.position_embedding.weight"] = (729, 1152)
    siglip = read_contents(sparse_safetensors(tmp_path / "s.safetensors", shapes)).encoder
    assert siglip and (siglip.hidden, siglip.image_size) == (1152, 384)


def test_loras(tmp_path: Path) -> None:
    for context, base in ((768, "SD1.5"), (2048, "SDXL")):
        path = sparse_safetensors(tmp_path / f"{context}.safetensors", lora_shapes(context))
        facts = read_contents(path).lora
        assert facts and (facts.only_attention, facts.rank, facts.base) == (True, 128, base)
    shapes = lora_shapes(768, feed_forward=True)
    style = read_contents(sparse_safetensors(tmp_path / "style.safetensors", shapes))
    assert style.lora and not style.lora.only_attention
    assert style.summary == "a LoRA, which belongs in models/loras"


def test_bin_files_are_identified_like_safetensors(tmp_path: Path) -> None:
    nested = synthetic_adapter(Family.STANDARD, "SD1.5", device="cpu", dtype=torch.float16)
    torch.save(nested, tmp_path / "a.bin")
    contents = read_contents(tmp_path / "a.bin")
    assert contents.spec and contents.spec.summary == (
        "standard for SD1.5, 4 tokens, needs ViT-H (1024)"
    )


def test_damaged_and_foreign_files_have_a_summary(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"")
    assert "is empty" in read_contents(tmp_path / "cut.safetensors").summary
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd.safetensors")
    assert read_contents(tmp_path / "sd.safetensors").summary == (
        "a full checkpoint, which belongs in models/checkpoints"
    )
    half = synthetic_adapter(Family.STANDARD, "SD1.5", tiny=True, device="cpu")
    del half["ip_adapter"]["3.to_k_ip.weight"]
    torch.save(half, tmp_path / "half.bin")
    assert "'3.to_k_ip.weight' is missing" in read_contents(tmp_path / "half.bin").summary
