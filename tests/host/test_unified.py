"""The unified loaders through the host: a MODEL and a preset in, the right files out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.encoders import OFFICIAL as ENCODERS
from support.models.encoders import clip, published
from support.models.modelfiles import ENCODER_FILES, sparse_safetensors
from support.models.modelfolders import KINDS, Models, lora_name, official
from support.models.unets import FULL_SD15, FULL_SDXL, TINY_SD15, build_empty_model

from ipadapter.library.presets import (
    COMMUNITY_PRESETS,
    FACEID_PRESETS,
    OFFICIAL,
    UNIFIED_PRESETS,
    requirement,
)

LOADERS = {
    "IPAdapterUnifiedLoader": UNIFIED_PRESETS,
    "IPAdapterUnifiedLoaderFaceID": FACEID_PRESETS,
    "IPAdapterUnifiedLoaderCommunity": COMMUNITY_PRESETS,
}
UNETS = ("SD1.5", "SDXL", "Kolors")  # the others: test_transformer_presets.py
COMBINATIONS = [(preset, base) for base in UNETS for preset in OFFICIAL[base]]
FACE_INPUTS = {"lora_strength": 0.6, "provider": "CPU"}


class WholeModels(Models):
    """The same folders, with encoders that load: of full width, one layer deep."""

    def encoder(self, name: str, dims: tuple[int, int, int]) -> None:
        hidden, _, size = dims
        config = next(
            config
            for config in ENCODERS.values()
            if (config["hidden_size"], config["image_size"]) == (hidden, size)
        )
        model = clip({**config, "num_hidden_layers": 1})
        shapes = {published(key): tuple(value.shape) for key, value in model.named_parameters()}
        sparse_safetensors(self.folders["clip_vision"] / name, shapes)


@cache
def model_of(base: str) -> Any:
    """A MODEL of a base, of full size and without memory. Kolors' is SDXL's with a projection."""
    model = build_empty_model(FULL_SD15 if base == "SD1.5" else FULL_SDXL)
    if base == "Kolors":
        unet = model.model.diffusion_model
        unet.encoder_hid_proj = torch.nn.Linear(4096, 2048, device="meta")
    return model


@pytest.fixture
def search(host: Any) -> Iterator[Any]:
    """Have the host search these folders for models instead of its own."""
    import folder_paths

    known = folder_paths.folder_names_and_paths
    kept = {kind: known[kind] for kind in KINDS}

    def use(*places: Models) -> None:
        for kind in KINDS:
            known[kind] = ([str(place.folders[kind]) for place in places], kept[kind][1])
        folder_paths.filename_list_cache.clear()

    yield use
    known.update(kept)
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def analyses(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Face analysis is not what is loaded here: what was asked for is."""
    asked: list[tuple[str, str]] = []
    unified = host.module("ipadapter.host.loaders")
    monkeypatch.setattr(
        unified, "load_face_analysis", lambda *given: asked.append(given) or "analysis"
    )
    return asked


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Every published file under its official name, and files that are none."""
    models = WholeModels(tmp_path_factory.mktemp("everything"))
    models.add_official()
    models.folders["ipadapter"].joinpath("page.safetensors").write_bytes(b"<html>")
    return models


def load(host: Any, preset: str, base: str, **inputs: Any) -> tuple[Any, Any]:
    """MODEL and pipeline from the loader that has the preset."""
    node_id = next(node_id for node_id, presets in LOADERS.items() if preset in presets)
    given = FACE_INPUTS | inputs if preset in FACEID_PRESETS else inputs
    return host.call(node_id, model=model_of(base), preset=preset, **given)


def check(host: Any, loaded: tuple[Any, Any], preset: str, base: str) -> None:
    """The right family and version, the right encoder, and for faces the analysis."""
    model, pipeline = loaded
    needed = official(requirement(preset, base).file)
    spec = pipeline.adapter.spec
    assert (spec.family.value, spec.base_name) == (needed.family.value, needed.base)
    assert spec.encoder_name == needed.encoder
    assert (pipeline.clip_vision is not None) == bool(needed.encoder)
    if needed.encoder:
        facts = host.module("ipadapter.host.encoders").facts_of(pipeline.clip_vision)
        assert facts.width(spec.embed_source) == spec.embed_dim
        assert facts.image_size == (336 if needed.base == "Kolors" else 224)
    assert (pipeline.insightface is not None) == (preset in FACEID_PRESETS)
    assert (model is not model_of(base)) == needed.lora  # a LoRA goes onto a copy


@pytest.mark.parametrize(("preset", "base"), COMBINATIONS)
def test_official_names(
    host: Any, search: Any, analyses: Any, everything: Models, preset: str, base: str
) -> None:
    search(everything)
    loaded = load(host, preset, base)
    assert loaded[1].adapter.name == requirement(preset, base).file
    check(host, loaded, preset, base)
    assert analyses == ([("buffalo_l", "CPU")] if preset in FACEID_PRESETS else [])


@pytest.mark.parametrize(("preset", "base"), COMBINATIONS)
def test_random_names_in_a_second_folder(
    host: Any, search: Any, analyses: Any, tmp_path: Path, preset: str, base: str
) -> None:
    """As extra_model_paths.yaml adds folders; the first is the host's own and empty."""
    models = WholeModels(tmp_path / "shared disk")
    models.add_nonsense(official(requirement(preset, base).file))
    search(Models(tmp_path / "own"), models)
    loaded = load(host, preset, base)
    assert loaded[1].adapter.name == "x1.bin"
    check(host, loaded, preset, base)
    shutil.rmtree(tmp_path / "shared disk")


def test_the_lora_reaches_the_model(
    host: Any, search: Any, analyses: Any, everything: Models, tmp_path: Path
) -> None:
    """Its file where there is one, else the one inside the adapter; at strength 0 none."""
    search(everything)
    from_file, _ = load(host, "FACEID", "SD1.5")
    assert len(from_file.patches) == 8  # what the file in this test covers: one block
    assert {patch[0][0] for patch in from_file.patches.values()} == {0.6}
    unchanged, _ = load(host, "FACEID", "SD1.5", lora_strength=0.0)
    assert unchanged is model_of("SD1.5") and not unchanged.patches
    alone = WholeModels(tmp_path)
    alone.adapter("any.bin", official("ip-adapter-faceid_sd15.bin"))
    search(alone)
    from_inside, _ = load(host, "FACEID", "SD1.5")
    assert len(from_inside.patches) == 2 * 16 * 4


def test_a_chained_loader_and_a_second_run_share_what_is_open(
    host: Any, search: Any, everything: Models
) -> None:
    search(everything)
    _, first = load(host, "STANDARD (medium strength)", "SD1.5")
    _, second = load(host, "PLUS (high strength)", "SD1.5", ipadapter=first)
    assert second.clip_vision is first.clip_vision
    assert second.adapter.name == "ip-adapter-plus_sd15.safetensors"


def test_notes_say_what_was_taken(host: Any, search: Any, tmp_path: Path) -> None:
    models = WholeModels(tmp_path)
    models.adapter("x.safetensors", official("ip-adapter-plus_sd15.safetensors"))
    models.encoder("y.safetensors", next(iter(ENCODER_FILES.values())))
    search(models)
    unified = host.module("ipadapter.host.loaders")
    notes = unified.load_preset(model_of("SD1.5"), "PLUS FACE (portraits)").notes
    assert notes[0].startswith("x.safetensors + y.safetensors: Plus for SD1.5, 16 tokens, needs")
    assert "its name does not tell the face variant" in notes[1]


FAILURES = {
    "PLUS (high strength)": (
        'No IP-Adapter for preset "PLUS (high strength)" on SD1.5 was found',
        "needed is Plus for SD1.5, made for ViT-H (1280)",
        "style.safetensors: a LoRA",
        "Download ip-adapter-plus_sd15.safetensors (98.2 MB) from https://huggingface.co/h94/IP-Adapter/",
    ),
    "FACEID": (
        "The LoRA that belongs to bare.bin was not found",
        "needed is ip-adapter-faceid_sd15_lora.safetensors",
        "does not hold one itself",
        "Download ip-adapter-faceid_sd15_lora.safetensors (51.1 MB) from https://huggingface.co/h94/",
    ),
    "FACEID PLUS V2": (
        "No image encoder for the adapter was found",
        "needs ViT-H (1280)",
        "(2.53 GB) from https://huggingface.co/h94/IP-Adapter/resolve/main/models/image_encoder/",
    ),
    "Kolors": ('Preset "Kolors" exists for SDXL and Kolors, the model is SD1.5',),
}


@pytest.mark.parametrize("preset", FAILURES)
def test_what_is_missing_is_said(
    host: Any, search: Any, analyses: Any, tmp_path: Path, preset: str
) -> None:
    models = Models(tmp_path)
    models.adapter("bare.bin", official("ip-adapter-faceid_sd15.bin"), lora=False, num_tokens=4)
    models.adapter("plusv2.bin", official("ip-adapter-faceid-plusv2_sd15.bin"))
    models.lora("style.safetensors", official("ip-adapter-faceid_sdxl.bin"))
    shutil.move(tmp_path / "loras" / "style.safetensors", tmp_path / "ipadapter")
    search(models)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(host, preset, "SD1.5")
    message = str(caught.value)
    assert all(part in message for part in FAILURES[preset]), message
    assert not analyses


def test_a_base_without_official_files(host: Any, search: Any, everything: Models) -> None:
    search(everything)
    model = build_empty_model(TINY_SD15)
    with pytest.raises(FileNotFoundError, match=r"on custom UNet \(16 layers, width 64\)"):
        host.call("IPAdapterUnifiedLoader", model=model, preset="PLUS (high strength)")


def test_a_lora_name_is_that_of_its_adapter() -> None:
    assert (
        lora_name(official("ip-adapter-faceid_sdxl.bin"))
        == "ip-adapter-faceid_sdxl_lora.safetensors"
    )
