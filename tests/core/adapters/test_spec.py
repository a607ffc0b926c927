"""Every family on every base it exists for is recognised by keys and shapes, whatever the
file is called.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.models import diffusers_layouts as layouts
from support.models.adapters import shapes_of, synthetic_adapter
from support.models.diffusers_layouts import diffusers_unet
from support.models.official_files import OFFICIAL_FILES, OfficialFile

from ipadapter.adapters.families import FaceVersion, Family, default_face_version
from ipadapter.adapters.spec import AdapterSpec, identify
from ipadapter.adapters.vision import EmbedSource
from ipadapter.bases.unet import BASES

NONSENSE = "model (1).safetensors"


def spec_of(family: Family, base: str, name: str, **changes: Any) -> AdapterSpec:
    nested = synthetic_adapter(family, base, **changes)
    return identify(shapes_of(nested["image_proj"]), shapes_of(nested["ip_adapter"]), name)


@pytest.mark.parametrize("file", OFFICIAL_FILES, ids=str)
def test_official_files(file: OfficialFile) -> None:
    spec = spec_of(file.family, file.base, file.name, **file.changes)
    assert (spec.family, spec.base_name, spec.num_tokens) == (file.family, file.base, file.tokens)
    assert (spec.encoder_name, spec.has_lora) == (file.encoder, file.lora)
    assert spec.needs_hid_proj == (file.family is Family.KOLORS_FACEID_PLUS)
    assert len(spec.layer_widths) == (16 if file.base == "SD1.5" else 70)


@pytest.mark.parametrize("file", OFFICIAL_FILES, ids=str)
def test_nonsense_names_change_nothing(file: OfficialFile) -> None:
    official, renamed = (
        spec_of(file.family, file.base, name, **file.changes) for name in (file.name, NONSENSE)
    )
    version = FaceVersion.V1 if file.family is Family.FACEID_PLUS else FaceVersion.AUTO
    assert renamed.with_face_version(version) == official


def test_sources() -> None:
    assert spec_of(Family.STANDARD, "SD1.5", NONSENSE).embed_source is EmbedSource.POOLED
    assert spec_of(Family.PLUS, "SDXL", NONSENSE).embed_source is EmbedSource.HIDDEN
    face = spec_of(Family.FACEID, "SD1.5", NONSENSE)
    assert (face.embed_source, face.embed_dim, face.face_dim) == (EmbedSource.FACE, 0, 512)
    both = spec_of(Family.FACEID_PLUS_V2, "SD1.5", NONSENSE)
    assert (both.embed_source, both.embed_dim, both.face_dim) == (
        EmbedSource.FACE_AND_HIDDEN,
        1280,
        512,
    )
    unnorm = spec_of(Family.PORTRAIT_UNNORM, "SDXL", NONSENSE)
    assert unnorm.uses_raw_face and unnorm.face_dim == 512


@pytest.mark.parametrize("base", BASES)
def test_bases(base: str) -> None:
    assert spec_of(Family.STANDARD, base, NONSENSE).base_name == base


# ComfyUI's names for the same: context, channels, their multiples, resnets per level, transformer
# layers on the way down (per resnet), on the way up (from the last one back) and in the middle.
HOST_CONFIGS = {
    "SD1.5": (768, 320, (1, 2, 4, 4), 2, (1, 1, 1, 1, 1, 1, 0, 0), (1,) * 9 + (0,) * 3, 1),
    "SD2": (1024, 320, (1, 2, 4, 4), 2, (1, 1, 1, 1, 1, 1, 0, 0), (1,) * 9 + (0,) * 3, 1),
    "SDXL": (2048, 320, (1, 2, 4), 2, (0, 0, 2, 2, 10, 10), (0, 0, 0, 2, 2, 2, 10, 10, 10), 10),
    "SSD-1B": (2048, 320, (1, 2, 4), 2, (0, 0, 2, 2, 4, 4), (0, 0, 0, 1, 1, 2, 10, 4, 4), 0),
    "Segmind Vega": (2048, 320, (1, 2, 4), 2, (0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 1, 1, 2, 2, 2), 0),
    "KOALA 700M": (2048, 320, (1, 2, 4), 1, (0, 2, 5), (0, 0, 2, 2, 5, 5), 0),
    "KOALA 1B": (2048, 320, (1, 2, 4), 1, (0, 2, 6), (0, 0, 2, 2, 6, 6), 6),
    "SDXL Refiner": (
        *(1280, 384, (1, 2, 4, 4), 2),
        *((0, 0, 4, 4, 4, 4, 0, 0), (0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0), 4),
    ),
    "SDXS": (768, 320, (1, 2, 4), 1, (0, 1, 1), (0, 0, 1, 1, 1, 1), 0),
    "SDXS 0.9": (1024, 320, (1, 2, 4), 1, (1, 1, 1), (1, 1, 1, 1, 1, 1), 0),
}


@pytest.mark.parametrize("base", BASES)
def test_layer_widths_are_those_of_the_host(base: str) -> None:
    context, channels, multiples, resnets, down, up, middle = HOST_CONFIGS[base]
    levels = [channels * factor for factor in multiples]
    runs = [(level, resnets) for level in levels]
    places = [level for level, count in runs for _ in range(count)]
    widths = [width for width, depth in zip(places, down, strict=True) for _ in range(depth)]
    back = [level for level in reversed(levels) for _ in range(resnets + 1)]
    widths += [width for width, depth in zip(back, up[::-1], strict=True) for _ in range(depth)]
    assert BASES[base] == (context, (*widths, *[levels[-1]] * middle))


# Published UNet configurations: blocks with attention (the first has none), resnets per block,
# transformer layers per block, whether the middle block attends.
SMALL_SDXL = {
    "SDXL": (2, (1, 2, 10), True),
    "KOALA 700M": (1, (1, 2, 5), False),
    "KOALA 1B": (1, (1, 2, 6), True),
}


@pytest.mark.parametrize("base", SMALL_SDXL)
def test_layer_widths_are_those_of_diffusers(base: str) -> None:
    """Every attn2 of diffusers' UNet in its own order."""
    resnets, depths, middle = SMALL_SDXL[base]
    unet = diffusers_unet(
        **layouts.CONFIGS["SDXL"]
        | {
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "layers_per_block": resnets,
            "transformer_layers_per_block": depths,
        },
        mid_block_type="UNetMidBlock2DCrossAttn" if middle else None,
    )
    attentions = [unet.get_submodule(n.removesuffix(".processor")) for n in unet.attn_processors]
    widths = tuple(cross.to_k.out_features for cross in attentions[1::2])
    assert BASES[base] == (attentions[1].to_k.in_features, widths)


def test_unknown_base_and_encoder_are_described() -> None:
    spec = spec_of(Family.PLUS, "SD1.5", NONSENSE, layer_widths=(320, 320, 320, 320), hidden=192)
    assert spec.base_name == "custom UNet (4 layers, width 768)"
    assert spec.encoder_name == "an image encoder with penultimate_hidden_states of width 192"
    assert "Plus for custom UNet (4 layers, width 768), 16 tokens" in spec.summary


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("ip-adapter-faceid-plus_sd15.bin", FaceVersion.V1),
        ("ip-adapter-faceid-plusv2_sd15.bin", FaceVersion.V2),
        ("ip-adapter-faceid-plus-v2_sdxl.bin", FaceVersion.V2),
        ("IP_Adapter_FaceID_Plus_V2.safetensors", FaceVersion.V2),
        ("x7.bin", FaceVersion.V2),
    ],
)
def test_face_version_default_is_the_name(name: str, version: FaceVersion) -> None:
    assert default_face_version(name) is version


def test_face_version_is_a_choice() -> None:
    spec = spec_of(Family.FACEID_PLUS, "SD1.5", "ip-adapter-faceid-plus_sd15.bin")
    assert spec.with_face_version("auto") == spec
    assert spec.with_face_version("v2").family is Family.FACEID_PLUS_V2
    assert spec.with_face_version("v2").with_face_version("v1") == spec
    standard = spec_of(Family.STANDARD, "SD1.5", "x")
    assert standard.with_face_version("v2") == standard


def damaged(**edits: tuple[int, ...] | None) -> tuple[dict, dict]:
    nested = synthetic_adapter(Family.STANDARD, "SD1.5")
    proj, layers = shapes_of(nested["image_proj"]), shapes_of(nested["ip_adapter"])
    for key, shape in edits.items():
        part = proj if key in proj else layers
        if shape is None:
            del part[key]
        else:
            part[key] = shape
    return proj, layers


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"5.to_k_ip.weight": None}, "a.bin: '5.to_k_ip.weight' is missing"),
        ({"5.to_k_ip.weight": None, "5.to_v_ip.weight": None}, "layers [5] are missing"),
        ({"5.to_k_ip.weight": (320, 1024)}, "layer 5 has to_k_ip (320, 1024) and to_v_ip"),
        ({"5.to_k_ip.weight": (320,)}, "layer 5 has to_k_ip (320,)"),
        (
            {"5.to_k_ip.weight": (640, 1024), "5.to_v_ip.weight": (640, 1024)},
            "different widths [768, 1024]",
        ),
        ({"4.to_k_ip.weight": (320, 768), "4.to_v_ip.weight": (320, 768)}, "[4] are unexpected"),
        ({"proj.weight": (3073, 1024)}, "3073 rows are not a whole number of tokens"),
        ({"proj.weight": (3072,)}, "the rest does not fit"),
        ({"norm.weight": None}, "the rest does not fit"),
        ({"norm.weight": (1024,)}, "gives tokens of width 1024, the layers take 768"),
        ({"proj.weight": (768 * 5000, 1024)}, "5000 tokens"),
        ({"1.to_k_ip.bias": (320,)}, "layers are of an unknown kind: it has '1.to_k_ip.bias'"),
    ],
)
def test_damaged_files_are_named(edits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        identify(*damaged(**edits), "a.bin")
    assert "a.bin" in str(caught.value) and message in str(caught.value)


def test_unknown_projector_lists_what_it_has() -> None:
    _, layers = damaged()
    with pytest.raises(ValueError, match=r"its projector has mystery\.weight"):
        identify({"mystery.weight": (1, 2)}, layers, "a.bin")
