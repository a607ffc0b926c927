"""Projectors agree with the reference implementations; broken files are refused
before any maths.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adapters import UNET_FAMILIES, shapes_of, synthetic_adapter
from support.references.official import official
from torch import Tensor, nn

from ipadapter.adapters.adapter import build_projector
from ipadapter.adapters.families import Family
from ipadapter.adapters.projectors import Resampler
from ipadapter.adapters.spec import AdapterSpec, identify

TOLERANCE = 1e-5
FULL = [
    (Family.STANDARD, "SD1.5"),
    (Family.STANDARD, "SDXL"),
    (Family.PLUS, "SD1.5"),
    (Family.PLUS, "SDXL"),
    (Family.FULL_FACE, "SD1.5"),
    (Family.FACEID, "SD1.5"),
    (Family.FACEID, "SDXL"),
    (Family.PORTRAIT, "SDXL"),
    (Family.PORTRAIT_UNNORM, "SDXL"),
    (Family.FACEID_PLUS, "SD1.5"),
    (Family.FACEID_PLUS_V2, "SDXL"),
    (Family.KOLORS_PLUS, "Kolors"),
]
TINY = [
    (Family.STANDARD, "SDXL"),
    (Family.PLUS, "SDXL"),
    (Family.FULL_FACE, "SD1.5"),
    (Family.FACEID, "SD1.5"),
    (Family.PORTRAIT, "SD1.5"),
    (Family.PORTRAIT_UNNORM, "SDXL"),
    (Family.KOLORS_FACEID_PLUS, "Kolors"),
]


def make(
    family: Family, base: str, tiny: bool = True, **changes: Any
) -> tuple[AdapterSpec, dict[str, Tensor], nn.Module]:
    """(spec, image_proj tensors, projector) with seeded random weights."""
    changes.setdefault("layer_widths", (8, 8))
    nested = synthetic_adapter(family, base, tiny, "cpu", **changes)
    spec = identify(
        shapes_of(nested["image_proj"]), shapes_of(nested["ip_adapter"]), family.value + ".bin"
    )
    return spec, nested["image_proj"], build_projector(spec, nested["image_proj"])


def inputs(spec: AdapterSpec, images: int = 2, patches: int = 17) -> dict[str, Tensor]:
    """Seeded features, named as the projectors' forward methods name them."""
    generator = torch.Generator().manual_seed(1)
    face = torch.randn(images, spec.face_dim, generator=generator)
    hidden = torch.randn(images, patches, spec.embed_dim, generator=generator)
    return {"face": face, "hidden": hidden, "pooled": hidden[:, 0]}


def diffusers_projection(tensors: dict[str, Tensor]) -> nn.Module:
    """diffusers' own projector, filled by diffusers' own key conversion."""
    from diffusers import UNet2DConditionModel

    convert: Any = UNet2DConditionModel._convert_ip_adapter_image_proj_to_diffusers
    return convert(None, tensors, low_cpu_mem_usage=False).train(False)


def ours(spec: AdapterSpec, projector: nn.Module, x: dict[str, Tensor]) -> Tensor:
    if spec.face_dim and spec.embed_dim:
        return projector(x["face"], x["hidden"])
    if spec.face_dim:
        return projector(x["face"])
    return projector(x["pooled"] if spec.family is Family.STANDARD else x["hidden"])


def theirs(spec: AdapterSpec, reference: nn.Module, x: dict[str, Tensor]) -> Tensor:
    if spec.face_dim and spec.embed_dim:
        reference.clip_embeds = x["hidden"][None]
        return reference(x["face"])
    if spec.face_dim:
        raw = spec.family is Family.PORTRAIT_UNNORM
        return reference(x["face"][:, None] if raw else x["face"])
    return reference(x["pooled"] if spec.family is Family.STANDARD else x["hidden"])


@torch.no_grad()
def compare_with_diffusers(family: Family, base: str, tiny: bool, **changes: object) -> None:
    pytest.importorskip("diffusers")
    spec, tensors, projector = make(family, base, tiny, **changes)
    x = inputs(spec)
    expected = theirs(spec, diffusers_projection(tensors), x)
    result = ours(spec, projector, x)
    assert result.shape == expected.shape == (2, expected.shape[1], spec.projected_dim)
    assert (result - expected).abs().max() <= TOLERANCE


# diffusers' key conversion knows resamplers of four layers and four tokens of FaceID Plus.
@pytest.mark.parametrize(("family", "base"), TINY)
def test_tiny_matches_diffusers(family: Family, base: str) -> None:
    tokens = {"num_tokens": 4} if family is Family.KOLORS_FACEID_PLUS else {}
    compare_with_diffusers(family, base, tiny=True, depth=4, **tokens)


@pytest.mark.parametrize(("family", "base"), FULL)
def test_full_size_matches_diffusers(family: Family, base: str) -> None:
    compare_with_diffusers(family, base, tiny=False)


@torch.no_grad()
@pytest.mark.parametrize("family", [Family.FACEID_PLUS_V2, Family.KOLORS_FACEID_PLUS])
def test_shortcut_matches_diffusers(family: Family) -> None:
    pytest.importorskip("diffusers")
    spec, tensors, projector = make(family, "SDXL", depth=4, num_tokens=4)
    reference: Any = diffusers_projection(tensors)
    reference.shortcut, reference.shortcut_scale = True, 0.7
    x = inputs(spec)
    result = projector(x["face"], x["hidden"], scale=0.7, shortcut=True)
    assert (result - theirs(spec, reference, x)).abs().max() <= TOLERANCE


def official_projection(family: Family, tensors: dict[str, Tensor]) -> nn.Module:
    """The official package's projector for a family."""
    shapes = shapes_of(tensors)
    if family is Family.STANDARD:
        (width,) = shapes["norm.weight"]
        return official("ip_adapter").ImageProjModel(width, shapes["proj.weight"][1], 4)
    if family is Family.FULL_FACE:
        return official("ip_adapter").MLPProjModel(
            shapes["proj.3.weight"][0], shapes["proj.0.weight"][0]
        )
    if family in (Family.FACEID, Family.PORTRAIT):
        (width,), rows = shapes["norm.weight"], shapes["proj.2.weight"][0]
        return official("ip_adapter_faceid").MLPProjModel(width, 512, rows // width)
    _, queries, dim = shapes["latents"]
    return official("resampler").Resampler(
        dim=dim,
        depth=4,
        heads=shapes["layers.0.0.to_q.weight"][0] // 64,
        num_queries=queries,
        embedding_dim=shapes["proj_in.weight"][1],
        output_dim=shapes["proj_out.weight"][0],
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "base"), [row for row in FULL if "Plus" not in row[0].value or row[0] is Family.PLUS]
)
def test_full_size_matches_the_official_package(family: Family, base: str) -> None:
    spec, tensors, projector = make(family, base, tiny=False)
    reference = official_projection(family, tensors)
    reference.load_state_dict(tensors, assign=True)
    x = inputs(spec)
    difference = ours(spec, projector, x) - theirs(spec, reference, x)
    assert difference.abs().max() <= TOLERANCE


def test_building_takes_the_files_tensors_as_they_are() -> None:
    state = torch.get_rng_state()
    _, tensors, projector = make(Family.PLUS, "SDXL", dtype=torch.float16)
    assert torch.equal(torch.get_rng_state(), state)
    for key, parameter in projector.state_dict().items():
        assert parameter.data_ptr() == tensors[key].data_ptr()
        assert parameter.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in projector.parameters())
    assert not projector.training


@torch.no_grad()
@pytest.mark.parametrize("family", [Family.PLUS, Family.FACEID_PLUS_V2])
def test_dropped_patches_are_as_if_they_were_not_there(family: Family) -> None:
    spec, _, projector = make(family, "SDXL")
    x = inputs(spec, images=3, patches=9)
    keep = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[0] = True
    face = [x["face"]] if spec.face_dim else []
    masked = projector(*face, x["hidden"], keep=keep)
    for i in range(3):
        one_face = [x["face"][i : i + 1]] if spec.face_dim else []
        alone = projector(*one_face, x["hidden"][i : i + 1, keep[i]])
        assert (masked[i : i + 1] - alone).abs().max() <= TOLERANCE
    assert (masked[0] - projector(*face, x["hidden"])[0]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_nothing_kept_is_finite_and_a_wrong_mask_is_named() -> None:
    spec, _, projector = make(Family.PLUS, "SD1.5")
    x = inputs(spec)["hidden"]
    assert isinstance(projector, Resampler)
    assert projector(x, torch.zeros(2, 17, dtype=torch.bool)).isfinite().all()
    with pytest.raises(ValueError, match=r"has the shape \(2, 16\), expected .* \(2, 17\)"):
        projector(x, torch.ones(2, 16, dtype=torch.bool))


def test_meta_projector_of_every_family() -> None:
    for family in UNET_FAMILIES:
        nested = synthetic_adapter(family, "SDXL")
        spec = identify(shapes_of(nested["image_proj"]), shapes_of(nested["ip_adapter"]), "x")
        projector = build_projector(spec, nested["image_proj"])
        assert set(projector.state_dict()) == set(nested["image_proj"])


BROKEN = {
    "missing": ("layers.1.0.to_kv.weight", None, "'layers.1.0.to_kv.weight' is missing"),
    "telling key missing": ("layers.1.1.1.weight", None, "is incomplete"),
    "extra": ("pos_emb.weight", torch.zeros(2), "'pos_emb.weight' is not part of it"),
    "shape": ("proj_in.bias", torch.zeros(3), "'proj_in.bias' has the shape (3,), expected (64,)"),
    "heads": ("layers.0.0.to_q.weight", torch.zeros(65, 64), "65 rows, expected a multiple of 64"),
    "nan": ("proj_in.bias", torch.full((64,), torch.nan), "'proj_in.bias' has NaN or infinite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_projectors_are_named(case: str) -> None:
    key, value, message = BROKEN[case]
    spec, tensors, _ = make(Family.PLUS, "SD1.5")
    tensors = {k: v for k, v in tensors.items() if k != key}
    if value is not None:
        tensors[key] = value
    with pytest.raises(ValueError, match=r".") as caught:
        build_projector(spec, tensors, "plus.bin")
    assert "plus.bin" in str(caught.value) and message in str(caught.value)
