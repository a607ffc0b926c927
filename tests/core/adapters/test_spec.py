"""Every family on every base it exists for is recognised by keys and shapes, whatever the file is
called.
"""

from __future__ import annotations

import pytest
from support.models.adapters import shapes_of, synthetic_adapter
from support.models.official_files import OFFICIAL_FILES, OfficialFile

from ipadapter.adapters.families import FaceVersion, Family, default_face_version
from ipadapter.adapters.spec import AdapterSpec, identify
from ipadapter.adapters.vision import EmbedSource

NONSENSE = "model (1).safetensors"


def spec_of(family: Family, base: str, name: str, **changes: object) -> AdapterSpec:
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


@pytest.mark.parametrize("base", ["SD1.5", "SD2", "SDXL", "SSD-1B", "Segmind Vega", "KOALA"])
def test_bases(base: str) -> None:
    assert spec_of(Family.STANDARD, base, NONSENSE).base_name == base


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
        ({"1.to_k_ip.bias": (320,)}, "for a transformer model (such as Flux or SD3.5)"),
    ],
)
def test_damaged_files_are_named(edits: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        identify(*damaged(**edits), "a.bin")
    assert "a.bin" in str(caught.value) and message in str(caught.value)


def test_adapters_for_transformers_are_refused() -> None:
    layers = {f"{i}.to_{kind}_ip.weight": (3072, 4096) for i in range(57) for kind in "kv"}
    proj = {"proj.weight": (4096 * 128, 1152), "norm.weight": (4096,)}
    with pytest.raises(ValueError, match="transformer model"):
        identify(proj, layers, "flux.bin")


def test_unknown_projector_lists_what_it_has() -> None:
    _, layers = damaged()
    with pytest.raises(ValueError, match=r"its projector has mystery\.weight"):
        identify({"mystery.weight": (1, 2)}, layers, "a.bin")
