"""Files of other methods are refused by their names, in one table for loaders, lists and Doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.models.adapters import UNET_FAMILIES, Shapes, flat, shapes_of, synthetic_adapter
from support.models.modelfiles import adapter_file, sparse_safetensors

from ipadapter.adapters.checkpoint import checkpoint_from_dict
from ipadapter.adapters.families import Family
from ipadapter.bases.unet import BASES
from ipadapter.files.kinds import OTHER_METHODS, Kind
from ipadapter.files.tensors import TensorMap
from ipadapter.library.choose import choose
from ipadapter.library.doctor import DoctorSubject, ModelFacts, ModelFolders, report
from ipadapter.library.remarks import remark
from ipadapter.library.scan import contents_of, scan

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor"
K_IP = {"ip_adapter.1.to_k_ip.weight": (640, 2048), "ip_adapter.1.to_v_ip.weight": (640, 2048)}
MODULES = {key.replace("ip_adapter", "adapter_modules"): shape for key, shape in K_IP.items()}
STANDARD = {"image_proj.proj.weight": (8192, 1024), "image_proj.norm.weight": (2048,)}


def plus(base: str = "SDXL") -> Shapes:
    return shapes_of(flat(synthetic_adapter(Family.PLUS, base)))


# Keys and shapes as the public code of each method saves them (an excerpt of them).
FILES: dict[str, tuple[Shapes, Kind, str]] = {
    "instruct_sdxl.bin": (
        {**plus(), "image_proj.proj_new_input.weight": (1280, 768)},
        Kind.INSTRUCT,
        "IP-Adapter-Instruct",
    ),
    "instruct_sd15.bin": (
        {**plus("SD1.5"), "image_proj.proj_prompt_input.weight": (768, 768)},
        Kind.INSTRUCT,
        "IP-Adapter-Instruct",
    ),
    "ip_adapter_art_sdxl_512.pth": (
        {
            "encoder_hid_proj.image_embeds.weight": (8192, 768),
            "encoder_hid_proj.image_embeds.bias": (8192,),
            "encoder_hid_proj.norm.weight": (2048,),
            f"{ATTENTION}.to_k_ip.weight": (640, 2048),
            f"{ATTENTION}.to_v_ip.weight": (640, 2048),
        },
        Kind.ART,
        "IP-Adapter-Art",
    ),
    "csgo.bin": (
        {
            "content_image_proj.proj.weight": (8192, 1280),
            "style_image_proj.latents": (1, 32, 1280),
            **K_IP,
            "ip_adapter.1.to_k_ip_content.weight": (640, 2048),
        },
        Kind.CSGO,
        "CSGO",
    ),
    "ip.bin": (
        {"style_image_proj_modules.0.proj.weight": (1536, 1024), **MODULES},
        Kind.STYLESHOT,
        "StyleShot",
    ),
    "model_sdxl.bin": (
        {**STANDARD, **K_IP, "ip_adapter.1.text_to_weight.weight": (1, 2048)},
        Kind.MIP,
        "MIP-Adapter",
    ),
    "pulid_v1.bin": (
        {"id_adapter.body.0.weight": (1024, 1280), "id_adapter_attn_layers.1.id_to_k.weight": (1,)},
        Kind.PULID,
        "PuLID",
    ),
    "pulid_v1.1.safetensors": ({"id_adapter.latents": (1, 32, 1024)}, Kind.PULID, "PuLID"),
    "ip-adapter_pulid_sdxl_fp16.safetensors": (
        {
            "image_proj.body.0.weight": (1024, 1280),
            "image_proj.mapping_patch_0.0.weight": (1024, 1024),
            **K_IP,
        },
        Kind.PULID,
        "PuLID",
    ),
    "pulid_flux_v0.9.1.safetensors": (
        {
            "pulid_encoder.id_embedding_mapping.0.weight": (1024, 1280),
            "pulid_ca.0.to_q.weight": (2048, 3072),
        },
        Kind.PULID_FLUX,
        "PuLID model for Flux",
    ),
    "ConsistentID-v1.bin": (
        {
            **MODULES,
            "image_proj.norm.weight": (768,),
            "FacialEncoder.mlp.layernorm.weight": (1,),
        },
        Kind.CONSISTENT_ID,
        "ConsistentID",
    ),
    "uniportrait-faceid_sd15.bin": (
        {"faceid_proj.proj.weight": (1, 1), "faceid_adapter.1.to_k_ip.weight": (320, 768)},
        Kind.UNIPORTRAIT,
        "UniPortrait",
    ),
    "photomaker-v1.bin": (
        {
            "id_encoder.vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
            "lora_weights.unet.down_blocks.1.to_k_lora.down.weight": (64, 640),
        },
        Kind.PHOTOMAKER,
        "PhotoMaker",
    ),
    "instantcharacter_ip-adapter.bin": (
        {
            "image_proj.latents": (1, 1024, 1280),
            "ip_adapter.0.norm_ip_q.scale": (128,),
            "ip_adapter.0.to_k_ip.weight": (3072, 4096),
            "ip_adapter.0.to_k_ip.bias": (3072,),
        },
        Kind.INSTANT_CHARACTER,
        "InstantCharacter",
    ),
    "anima_ip_adapter_quality.safetensors": (
        {
            "to_k_ip.0.weight": (2048, 1024),
            "to_v_ip.0.weight": (2048, 1024),
            "ip_gate.0": (),
            "ip_centroid": (1024,),
            "resampler.queries": (1, 16, 1024),
        },
        Kind.ANIMA,
        "Anima",
    ),
    "ipa.pt": ({"blocks.0.attn2.kv_proj_ip_adapter.weight": (2, 2)}, Kind.HUNYUAN, "HunyuanDiT"),
    "lynx.safetensors": (
        {"blocks.0.cross_attn.ip_adapter.to_k_ip.weight": (2, 2)},
        Kind.LYNX,
        "Lynx",
    ),
    "flux1-redux-dev.safetensors": (
        {"redux_up.weight": (12288, 1152), "redux_down.weight": (4096, 12288)},
        Kind.REDUX,
        "Flux Redux",
    ),
    "t2iadapter_style_sd14v1.pth": (
        {"ln_post.weight": (1024,), "style_embedding": (1, 8, 1024)},
        Kind.T2I_STYLE,
        "T2I-Adapter",
    ),
}


def tensors(shapes: Shapes) -> TensorMap:
    return TensorMap(shapes, lambda key: torch.empty(shapes[key], device="meta"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_other_methods_are_refused_by_name(name: str, wrapper: str) -> None:
    shapes, _, called = FILES[name]
    state = {wrapper + key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"\[unsupported\]$") as caught:
        checkpoint_from_dict(state, "chosen.bin")
    text = str(caught.value)
    assert text.startswith("chosen.bin is a") and called in text
    assert "which this pack cannot use: it" in text
    assert "ownload" not in text and "UNet" not in text and "damaged" not in text


@pytest.mark.parametrize("name", FILES)
def test_lists_and_doctor_say_the_same(tmp_path: Path, name: str) -> None:
    shapes, kind, called = FILES[name]
    contents = contents_of(tensors(shapes), name)
    assert contents.kind is kind and OTHER_METHODS[kind] in contents.summary
    sparse_safetensors(tmp_path / "a" / name, shapes)
    folders = ModelFolders(*(scan([tmp_path / part]) for part in "acl"))
    subject = DoctorSubject(ModelFacts(*BASES["SDXL"], "SDXL"))
    (line,) = [row for row in report(subject, folders).splitlines() if row.startswith("  ? ")]
    assert name in line and called in line and "which this pack cannot use" in line


def test_every_other_method_has_a_row_here() -> None:
    assert {kind for _, kind, _ in FILES.values()} == OTHER_METHODS.keys()


@pytest.mark.parametrize("family", UNET_FAMILIES)
def test_no_family_of_this_pack_is_taken_for_another_method(family: Family) -> None:
    base = "Kolors" if "Kolors" in family.value else "SDXL"
    shapes = shapes_of(flat(synthetic_adapter(family, base)))
    assert contents_of(tensors(shapes), "x").kind is Kind.ADAPTER


def test_a_standard_adapter_from_diffusers_is_not_art() -> None:
    shapes = dict(FILES["ip_adapter_art_sdxl_512.pth"][0])
    for width in (1024, 1280):
        shapes["encoder_hid_proj.image_embeds.weight"] = (8192, width)
        assert contents_of(tensors(shapes), "x").kind is Kind.ADAPTER


@pytest.mark.parametrize(
    "name", ["InstantID/ip-adapter.bin", "ip-adapter_instant_id_sdxl.bin", "instantid\\x.bin"]
)
def test_instantid_is_told_by_its_name_alone(tmp_path: Path, name: str) -> None:
    nested = synthetic_adapter(Family.PORTRAIT_UNNORM, "SDXL")
    spec = contents_of(tensors(shapes_of(flat(nested))), "x").spec
    assert spec and "ControlNet" in remark(spec, name)
    assert not remark(spec, "ip-adapter-faceid-portrait_sdxl_unnorm.bin")
    other = contents_of(tensors(plus()), "x").spec
    assert other and not remark(other, name)


def test_instantid_in_doctor_and_presets(tmp_path: Path) -> None:
    nested = synthetic_adapter(Family.PORTRAIT_UNNORM, "SDXL")
    adapter_file(tmp_path / "a" / "InstantID" / "ip-adapter.safetensors", nested)
    folders = ModelFolders(*(scan([tmp_path / part]) for part in "acl"))
    subject = DoctorSubject(ModelFacts(*BASES["SDXL"], "SDXL"))
    assert "The name says InstantID" in report(subject, folders)
    preset = "FACEID PORTRAIT UNNORM - SDXL only (strong)"
    parts = (folders.adapters, folders.encoders, folders.loras)
    assert any("ControlNet" in note for note in choose(preset, "SDXL", *parts).notes)
