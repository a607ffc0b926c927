"""The unified loaders' presets find their files by content; a name only breaks ties."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models.adapters import synthetic_adapter
from support.models.modelfiles import (
    ENCODER_FILES,
    adapter_file,
    lora_shapes,
    sparse_safetensors,
)
from support.models.modelfolders import Models, official
from support.models.official_files import OFFICIAL_FILES

from ipadapter.adapters.families import Family
from ipadapter.errors import plain_text
from ipadapter.library.choose import find_encoder, same_lora
from ipadapter.library.presets import (
    COMMUNITY_PRESETS,
    FACEID_PRESETS,
    OFFICIAL,
    UNIFIED_PRESETS,
    VIT_G,
    requirement,
)

UNETS = ("SD1.5", "SDXL", "Kolors")  # the others: test_transformer_presets.py
COMBINATIONS = [(preset, base) for base in UNETS for preset in OFFICIAL[base]]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Every published file under its official name, in subfolders, among other files."""
    models = Models(tmp_path_factory.mktemp("everything"))
    models.add_official()
    models.folders["ipadapter"].joinpath("broken.safetensors").write_bytes(b"<html>")
    style = lora_shapes(768, feed_forward=True)
    sparse_safetensors(models.folders["loras"] / "style.safetensors", style)
    return models


@pytest.mark.parametrize(("preset", "base"), COMBINATIONS)
def test_official_names(everything: Models, preset: str, base: str) -> None:
    choice = everything.choose(preset, base)
    needed = requirement(preset, base)
    file = official(needed.file)
    assert choice.adapter.path.name == needed.file and not choice.notes
    assert (choice.spec.family, choice.spec.encoder_name) == (file.family, file.encoder)
    assert (choice.encoder is not None) == bool(file.encoder)
    if choice.encoder:
        facts = choice.encoder.contents.encoder
        assert facts and facts.width(choice.spec.embed_source) == choice.spec.embed_dim
        assert facts.image_size == (336 if file.base == "Kolors" else 224)
    assert (choice.lora.path.name if choice.lora else "") == needed.lora
    assert not choice.lora_inside


def test_mark1_for_noobai(tmp_path: Path) -> None:
    """Its layout and name are its own: alone it serves the preset, beside the official file not."""
    models, mark1 = Models(tmp_path), official("noobIPAMARK1_mark1.safetensors")
    renamed = {"image_proj": "image_proj_model.", "ip_adapter": "adapter_modules."}
    flat = {
        renamed[half] + key: tuple(tensor.shape)
        for half, part in mark1.shapes().items()
        for key, tensor in part.items()
    }
    sparse_safetensors(models.folders["ipadapter"] / mark1.name, flat)
    models.encoder("g.safetensors", (1664, 1280, 224))
    choice = models.choose(VIT_G, "SDXL")
    assert choice.adapter.name == mark1.name and "chosen by its content" in choice.notes[0]
    assert choice.spec.summary == "standard for SDXL, 4 tokens, needs ViT-bigG (1280)"
    models.adapter("ip-adapter_sdxl.safetensors", official("ip-adapter_sdxl.safetensors"))
    assert models.choose(VIT_G, "SDXL").adapter.name == "ip-adapter_sdxl.safetensors"


@pytest.mark.parametrize(("preset", "base"), COMBINATIONS)
def test_random_names(tmp_path: Path, preset: str, base: str) -> None:
    """One file of each shape; nothing in a name tells anything."""
    models = Models(tmp_path)
    needed = official(requirement(preset, base).file)
    models.add_nonsense(needed)
    choice = models.choose(preset, base)
    assert choice.adapter.name == "x1.bin"
    assert choice.spec.family is needed.family
    if needed.lora:
        assert choice.lora and same_lora(choice.adapter.path, choice.lora.path)
        index = [f for f in OFFICIAL_FILES if f.lora].index(needed)
        assert choice.lora.name == f"lora{index}.safetensors"
    if choice.encoder:
        assert choice.encoder.contents.encoder
        index = [facts[0] for facts in ENCODER_FILES.values()].index(
            choice.encoder.contents.encoder.hidden
        )
        assert choice.encoder.path.parent.name == str(index)


def test_every_preset_is_in_a_loader() -> None:
    listed = UNIFIED_PRESETS + FACEID_PRESETS + COMMUNITY_PRESETS
    assert {preset for preset, _ in COMBINATIONS} == set(listed)


def test_light_and_portrait_take_the_older_file_if_it_is_the_only_one(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.encoder("h.bin", (1280, 1024, 224))
    for name in ("ip-adapter_sd15_light.safetensors", "ip-adapter-faceid-portrait_sd15.bin"):
        models.adapter(name, official(name))
    light = models.choose("LIGHT - SD1.5 only (low strength)", "SD1.5")
    assert light.adapter.name == "ip-adapter_sd15_light.safetensors"
    portrait = models.choose("FACEID PORTRAIT (style transfer)", "SD1.5")
    assert portrait.adapter.name == "ip-adapter-faceid-portrait_sd15.bin"
    assert portrait.encoder is None


def test_a_name_that_tells_nothing_is_noted_and_two_are_ambiguous(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.encoder("h.bin", (1280, 1024, 224))
    models.adapter("one.safetensors", official("ip-adapter-plus_sd15.safetensors"))
    choice = models.choose("PLUS FACE (portraits)", "SD1.5")
    assert choice.notes == (
        "one.safetensors was chosen by its content; its name does not tell the face variant.",
    )
    models.adapter("two.safetensors", official("ip-adapter-plus-face_sd15.safetensors"))
    with pytest.raises(ValueError, match="Several files") as caught:
        models.choose("PLUS FACE (portraits)", "SD1.5")
    assert str(caught.value) == (
        'Several files could be preset "PLUS FACE (portraits)" on SD1.5, which is Plus, the face '
        "variant: one.safetensors, two.safetensors. They have the same shapes and their names do "
        "not tell them apart. Rename the right one to ip-adapter-plus-face_sd15.safetensors, or "
        "load it with IPAdapter Model Loader. [several-files]"
    )


def test_custom_bases_work_by_content(tmp_path: Path) -> None:
    models = Models(tmp_path)
    nested = synthetic_adapter(Family.PLUS, "SD1.5", layer_widths=(320,) * 4, hidden=192)
    adapter_file(models.folders["ipadapter"] / "small.safetensors", nested)
    models.encoder("tiny.safetensors", (192, 128, 64))
    base = "custom UNet (4 layers, width 768)"
    choice = models.choose("PLUS (high strength)", base)
    assert choice.adapter.name == "small.safetensors"
    assert choice.encoder and choice.encoder.name == "tiny.safetensors"
    with pytest.raises(FileNotFoundError, match="No official file exists for this base"):
        models.choose("STANDARD (medium strength)", base)


def failure(models: Models, preset: str, base: str) -> str:
    """The message, with the folders' common root taken out."""
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        models.choose(preset, base)
    root = models.folders["ipadapter"].parent
    return plain_text(caught.value).replace(f"{root}/", "models/")


def test_message_no_adapter(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.adapter("a.safetensors", official("ip-adapter_sdxl_vit-h.safetensors"))
    models.adapter("b.safetensors", official("ip-adapter-plus_sd15.safetensors"))
    face = official("ip-adapter-plus-face_sdxl_vit-h.safetensors")
    models.adapter(face.name, face)
    models.folders["ipadapter"].joinpath("cut.safetensors").write_bytes(b"")
    lora = models.folders["ipadapter"] / "lora.safetensors"
    sparse_safetensors(lora, lora_shapes(768, feed_forward=True))
    assert failure(models, "PLUS (high strength)", "SDXL") == (
        'No IP-Adapter for preset "PLUS (high strength)" on SDXL was found: needed is Plus for '
        "SDXL, made for ViT-H (1280).\n"
        "Searched: models/ipadapter\n"
        "Seen:\n"
        "  a.safetensors: standard for SDXL\n"
        "  b.safetensors: Plus for SD1.5\n"
        "  cut.safetensors: empty (0 bytes). Delete it and download it again.\n"
        "  ip-adapter-plus-face_sdxl_vit-h.safetensors: its name says that it is the face "
        "variant\n"
        "  lora.safetensors: a LoRA, which belongs in models/loras\n"
        "Download ip-adapter-plus_sdxl_vit-h.safetensors (847.5 MB) from https://huggingface.co/h94/IP-Adapter/resolve/main/"
        "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors to models/ipadapter. Any file name "
        "works."
    )


def test_message_wrong_encoder_for_the_preset(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.adapter("g.safetensors", official("ip-adapter_sdxl.safetensors"))
    assert failure(models, "STANDARD (medium strength)", "SDXL") == (
        'No IP-Adapter for preset "STANDARD (medium strength)" on SDXL was found: needed is '
        "standard for SDXL, made for ViT-H (1024).\n"
        "Searched: models/ipadapter\n"
        "Seen:\n"
        "  g.safetensors: made for ViT-bigG (1280)\n"
        "Download ip-adapter_sdxl_vit-h.safetensors (698.4 MB) from https://huggingface.co/h94/IP-Adapter/resolve/main/"
        "sdxl_models/ip-adapter_sdxl_vit-h.safetensors to models/ipadapter. Any file name works."
    )


def test_message_no_encoder(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.adapter("a.safetensors", official("ip-adapter_sd15.safetensors"))
    models.encoder("bare.safetensors", (1280, 0, 224))
    models.encoder("big.safetensors", (1664, 1280, 224))
    assert failure(models, "STANDARD (medium strength)", "SD1.5") == (
        "No image encoder for the adapter was found: it is standard for SD1.5 and needs ViT-H "
        "(1024).\n"
        "Searched: models/clip_vision\n"
        "Seen:\n"
        "  bare.safetensors: has no visual_projection.weight, so it cannot give image_embeds\n"
        "  big.safetensors: needs ViT-H (1024), got ViT-bigG (1664), 224 px, image_embeds 1280\n"
        "Download CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors (2.53 GB) from https://huggingface.co/h94/IP-Adapter/resolve/main/"
        "models/image_encoder/model.safetensors to models/clip_vision. Any file name works."
    )


def test_message_kolors_needs_the_336_px_encoder(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.adapter("k.bin", official("Kolors-IP-Adapter-Plus.bin"))
    models.encoder("l.safetensors", (1024, 768, 224))
    message = failure(models, "Kolors", "SDXL")
    assert "l.safetensors: ViT-L/14 at 224 px (1024), 224 px" in message
    assert "needed is 336 px" in message


def test_message_empty_folders(tmp_path: Path) -> None:
    message = failure(Models(tmp_path), "FACEID", "SD1.5")
    assert message == (
        'No IP-Adapter for preset "FACEID" on SD1.5 was found: needed is FaceID for SD1.5.\n'
        "Searched: models/ipadapter\n"
        "Seen:\n"
        "  no model files\n"
        "Download ip-adapter-faceid_sd15.bin (96.7 MB) from https://huggingface.co/h94/"
        "IP-Adapter-FaceID/resolve/main/ip-adapter-faceid_sd15.bin to models/ipadapter. Any file "
        "name works."
    )


def test_many_files_are_summed_up(tmp_path: Path) -> None:
    models = Models(tmp_path)
    for i in range(25):
        (models.folders["ipadapter"] / f"{i:02}.bin").write_bytes(b"")
    assert "  and 5 more files that do not fit\n" in failure(models, "FACEID", "SD1.5")


@pytest.mark.parametrize(
    ("preset", "base", "message"),
    [
        (
            "LIGHT - SD1.5 only (low strength)",
            "SDXL",
            'Preset "LIGHT - SD1.5 only (low strength)" exists for SD1.5, the model is SDXL.',
        ),
        ("Kolors", "SD1.5", 'Preset "Kolors" exists for SDXL and Kolors, the model is SD1.5.'),
        ("FACEID PLUS - SD1.5 only", "SDXL", "exists for SD1.5, the model is SDXL."),
        ("BEST", "SD1.5", 'There is no preset "BEST". Choose one of: LIGHT - SD1.5 only'),
    ],
)
def test_presets_that_a_base_does_not_have(
    tmp_path: Path, preset: str, base: str, message: str
) -> None:
    assert message in failure(Models(tmp_path), preset, base)


def test_faceid_without_its_lora_file(tmp_path: Path) -> None:
    """The LoRA inside the adapter serves; without one the message names the file to get."""
    models = Models(tmp_path)
    faceid = official("ip-adapter-faceid_sd15.bin")
    models.adapter("face.bin", faceid)
    models.lora("other.safetensors", official("ip-adapter-faceid-plusv2_sd15.bin"))
    choice = models.choose("FACEID", "SD1.5")
    assert choice.lora is None and choice.lora_inside
    models.adapter("face.bin", faceid, lora=False)
    assert models.choose("FACEID", "SD1.5", need_lora=False).lora is None
    assert failure(models, "FACEID", "SD1.5") == (
        "The LoRA that belongs to face.bin was not found: needed is "
        "ip-adapter-faceid_sd15_lora.safetensors, and the adapter file does not hold one itself.\n"
        "Searched: models/loras (1 files)\n"
        "Download ip-adapter-faceid_sd15_lora.safetensors (51.1 MB) from https://huggingface.co/"
        "h94/IP-Adapter-FaceID/resolve/main/ip-adapter-faceid_sd15_lora.safetensors to "
        "models/loras."
    )


def test_encoder_ties_go_to_the_telling_name(tmp_path: Path) -> None:
    models = Models(tmp_path)
    name = "ip-adapter_sd15.safetensors"
    models.adapter(name, official(name))
    models.encoder("another.safetensors", (1280, 1024, 224))
    models.encoder("image_encoder/model.safetensors", (1280, 1024, 224))
    spec = models.choose("STANDARD (medium strength)", "SD1.5").spec
    chosen = find_encoder(spec, models.listings()[1])
    assert chosen.path.parent.name == "image_encoder"
