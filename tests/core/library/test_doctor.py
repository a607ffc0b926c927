"""The report names what fits, what does not and why, and what to download."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models.modelfiles import adapter_file, encoder_shapes, lora_shapes, sparse_safetensors
from support.models.official_files import OFFICIAL_FILES
from support.models.transformer_adapters import published
from torch import Tensor

from ipadapter.adapters.checkpoint import checkpoint_from_dict
from ipadapter.adapters.spec import AdapterSpec, identify
from ipadapter.bases.flux import CHROMA, FLUX, flux_layout
from ipadapter.bases.unet import BASES
from ipadapter.library.doctor import DoctorSubject, ModelFacts, ModelFolders, report
from ipadapter.library.downloads import DOWNLOADS
from ipadapter.library.presets import OFFICIAL, PLUS, STANDARD
from ipadapter.library.scan import scan

SD15, SDXL = ModelFacts(*BASES["SD1.5"], "SD15"), ModelFacts(*BASES["SDXL"], "SDXL")
USUAL = (STANDARD, PLUS)
NO_UNET = ModelFacts(0, (), "Flux")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    root = tmp_path_factory.mktemp("models")
    for name in ("ip-adapter-plus_sd15.safetensors", "ip-adapter_sdxl_vit-h.safetensors"):
        file = next(f for f in OFFICIAL_FILES if f.name == name)
        adapter_file(root / "ipadapter" / name, file.shapes())
    (root / "ipadapter" / "page.safetensors").write_bytes(b"<html>")
    sparse_safetensors(root / "clip_vision" / "g.safetensors", encoder_shapes(1664, 1280, 224))
    sparse_safetensors(root / "loras" / "ip-adapter-faceid_sd15_lora.safetensors", lora_shapes(768))
    sparse_safetensors(root / "loras" / "style.safetensors", lora_shapes(768))
    return ModelFolders(*(scan([root / name]) for name in ("ipadapter", "clip_vision", "loras")))


def text(subject: DoctorSubject, folders: ModelFolders, *remarks: str) -> str:
    root = folders.adapters.folders[0].parent
    return report(subject, folders, remarks).replace(f"{root}/", "models/")


def test_only_a_model(folders: ModelFolders) -> None:
    assert text(DoctorSubject(SD15), folders, "insightface is not installed") == (
        "MODEL  SD15: SD1.5, 16 cross-attention layers, text width 768\n"
        "\n"
        "ADAPTER FILES  in models/ipadapter\n"
        "  + ip-adapter-plus_sd15.safetensors: Plus for SD1.5, 16 tokens, needs ViT-H (1280); "
        "presets: PLUS (high strength)\n"
        "  - ip-adapter_sdxl_vit-h.safetensors: standard for SDXL, 4 tokens, needs ViT-H (1024)\n"
        "  ? page.safetensors: a web page, not a model (a download link that led to a page). "
        "Delete it and download it again.\n"
        "\n"
        "ENCODER FILES  in models/clip_vision\n"
        "  + g.safetensors: a CLIP vision encoder: ViT-bigG (1664), 224 px, image_embeds 1280\n"
        "\n"
        "FACEID LORAS  in models/loras\n"
        "  ip-adapter-faceid_sd15_lora.safetensors: a LoRA for the attention of SD1.5, rank 128\n"
        "\n"
        "insightface is not installed"
    )


def test_everything_connected_and_wrong(folders: ModelFolders) -> None:
    plus, _, _ = folders.adapters
    (big,) = folders.encoders
    spec, facts = plus.contents.spec, big.contents.encoder
    assert spec and facts
    subject = DoctorSubject(SDXL, (plus.name, spec), (big.name, facts), "PLUS (high strength)")
    result = text(subject, folders)
    for line in (
        "MODEL  SDXL, 70 cross-attention layers, text width 2048",
        "ADAPTER  ip-adapter-plus_sd15.safetensors: Plus for SD1.5, 16 tokens, needs ViT-H (1280)",
        "  does not fit: the adapter is for SD1.5 (16 layers, text width 768), the model is SDXL "
        "(70 layers, text width 2048)",
        "  does not fit the adapter: needs ViT-H (1280), got ViT-bigG (1664), 224 px, "
        "image_embeds 1280",
        'PRESET  "PLUS (high strength)"',
        '  No IP-Adapter for preset "PLUS (high strength)" on SDXL was found: needed is Plus for '
        "SDXL, made for ViT-H (1280).",
        "  - g.safetensors: a CLIP vision encoder: ViT-bigG (1664), 224 px, image_embeds 1280",
        "  none fits the adapter, which needs ViT-H (1280). Download "
        "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors (2.53 GB) from https://huggingface.co/h94/IP-Adapter/resolve/main/"
        "models/image_encoder/model.safetensors",
    ):
        assert line in result.splitlines()


def test_a_preset_that_works_and_a_fitting_adapter(tmp_path: Path) -> None:
    file = next(f for f in OFFICIAL_FILES if f.name == "ip-adapter-faceid-plusv2_sd15.bin")
    adapter_file(tmp_path / "a" / "x.bin", file.shapes())
    sparse_safetensors(tmp_path / "c" / "h.safetensors", encoder_shapes(1280, 1024, 224))
    folders = ModelFolders(*(scan([tmp_path / name]) for name in "acl"))
    spec = next(iter(folders.adapters)).contents.spec
    assert spec
    lines = report(
        DoctorSubject(SD15, ("x.bin", spec), preset="FACEID PLUS V2"), folders
    ).splitlines()
    assert "  fits the model" in lines
    assert "ENCODER  none connected; the adapter needs ViT-H (1280)" in lines
    start = lines.index('PRESET  "FACEID PLUS V2"')
    assert lines[start + 1 : start + 5] == [
        "  adapter: x.bin",
        "  encoder: h.safetensors",
        "  LoRA: the one inside the adapter",
        "  x.bin was chosen by its content; its name does not tell version 2.",
    ]


def test_a_model_without_cross_attention(folders: ModelFolders) -> None:
    result = text(DoctorSubject(NO_UNET), folders)
    assert result.startswith("MODEL  Flux: not a UNet with cross-attention.")
    assert "  - ip-adapter-plus_sd15.safetensors" in result


def test_without_a_model_it_lists_all_and_what_to_get(folders: ModelFolders) -> None:
    result = text(DoctorSubject(preset="PLUS (high strength)"), folders)
    assert result.startswith("MODEL  none connected")
    assert "  + ip-adapter-plus_sd15.safetensors: Plus for SD1.5, 16 tokens" in result
    missing = result[result.index("TO GET") :]
    for name in ("ip-adapter_sd15.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors"):
        assert f"{DOWNLOADS[name].url} to models/ipadapter" in missing
    assert "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors (2.53 GB)" in missing
    *_, flux, _plus, large = missing.split("preset")
    assert "flux-ip-adapter.safetensors" in flux and "clip-vit-large-patch14.safetensors" in flux
    assert "sd3.5-large-ip-adapter.bin" in large and "sigclip_vision" in large


def test_what_is_there_is_not_to_get(tmp_path: Path) -> None:
    for needed in (OFFICIAL[base][preset] for base in ("SD1.5", "SDXL") for preset in USUAL):
        file = next(f for f in OFFICIAL_FILES if f.name == needed.file)
        adapter_file(tmp_path / "ipadapter" / needed.file, file.shapes())
    sparse_safetensors(tmp_path / "clip_vision" / "h.safetensors", encoder_shapes(1280, 1024, 224))
    (tmp_path / "loras").mkdir()
    names = ("ipadapter", "clip_vision", "loras")
    whole = ModelFolders(*(scan([tmp_path / name]) for name in names))
    result = text(DoctorSubject(), whole)
    missing = result[result.index("TO GET") :]
    assert "Flux.1" in missing and "SD3.5-Large" in missing
    assert "SD1.5" not in missing and "SDXL" not in missing


@pytest.mark.parametrize(
    ("file", "model"), [("XLabs", FLUX), ("XLabs", CHROMA), ("InstantX", FLUX)], ids=str
)
def test_adapters_for_transformers_fit_theirs(folders: ModelFolders, file: str, model: str) -> None:
    layout = flux_layout(model, 3072, 24, 19, 38)
    widths = tuple(layer.width for layer in layout.layers)
    facts = ModelFacts(0, widths, model, transformer=layout)
    spec = spec_of_state(published()[file])
    right = report(DoctorSubject(facts, ("flux.safetensors", spec)), folders)
    assert right.startswith(f"MODEL  {model}, 57 blocks, width 3072")
    assert "\n  fits the model" in right
    unet = ModelFacts(*BASES["SDXL"], "SDXL")
    assert "the adapter is for Flux.1" in report(DoctorSubject(unet, ("x", spec)), folders)
    large = spec_of_state(published()["InstantX timed"])
    wrong = report(DoctorSubject(facts, ("large.bin", large)), folders)
    assert f"the adapter is for SD3.5-Large (38 layers, width 2432), the model is {model}" in wrong


def spec_of_state(state: dict[str, Tensor]) -> AdapterSpec:
    checkpoint = checkpoint_from_dict(state, "x")
    return identify(checkpoint.image_proj.shapes(), checkpoint.ip_adapter.shapes(), "x")
