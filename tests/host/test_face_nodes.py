"""Face nodes end to end: a real photograph, the real InsightFace (models made for the test),
a real MODEL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, TINY_SDXL, build_model
from support.models.vision import tiny_clip_vision

CASES = {
    "FaceID": ("SD1.5", "IPAdapterFaceID"),
    "FaceID Plus": ("SD1.5", "IPAdapterFaceID"),
    "FaceID Plus v2": ("SD1.5", "IPAAdapterFaceIDBatch"),
    "FaceID Portrait": ("SD1.5", "IPAdapterFaceID"),
    "FaceID Portrait unnorm": ("SDXL", "IPAdapterFaceID"),
    "Plus": ("SD1.5", "IPAdapterFaceID"),
}
GEOMETRY = {"SD1.5": TINY_SD15, "SDXL": TINY_SDXL}


@pytest.fixture(scope="module")
def analysis(host: Any) -> Any:
    pytest.importorskip("insightface")
    from tools.face_models import ensure_pack

    ensure_pack(host.base / "models" / "insightface", "buffalo_l")
    (loaded,) = host.call("IPAdapterInsightFaceLoader", provider="CPU", model_name="buffalo_l")
    return loaded


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    from tools.face_models import astronaut

    return torch.from_numpy(astronaut().copy())[None].float() / 255


def adapter_of(host: Any, family: str, base: str, name: str = "adapter.bin") -> Any:
    state = synthetic_adapter(family, base, tiny=True, device="cpu", seed=4)
    checkpoint = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(state, name)
    return host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)


def keys_of(model: Any) -> torch.Tensor:
    slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    return slots[("middle", 0, 0)].injections[0].layer.cond.key


@pytest.mark.parametrize("family", CASES)
def test_a_face_becomes_a_prompt(
    host: Any, analysis: Any, photograph: torch.Tensor, family: str
) -> None:
    base, node_id = CASES[family]
    patched, faces = host.call(
        node_id,
        model=build_model(GEOMETRY[base]),
        ipadapter=adapter_of(host, family, base),
        image=photograph,
        clip_vision=tiny_clip_vision(projected=48, hidden=80),
        insightface=analysis,
    )
    assert faces.shape[0] == 1 and faces.shape[-1] == 3
    assert torch.isfinite(keys_of(patched)).all()


def test_versions_of_faceid_plus_are_an_explicit_choice(
    host: Any, analysis: Any, photograph: torch.Tensor
) -> None:
    given = {
        "model": build_model(TINY_SD15),
        "ipadapter": adapter_of(host, "FaceID Plus", "SD1.5", "nonsense.bin"),
        "image": photograph,
        "clip_vision": tiny_clip_vision(projected=48, hidden=80),
        "insightface": analysis,
    }
    keys = {
        version: keys_of(host.call("IPAdapterFaceID", **given, face_version=version)[0])
        for version in ("v1", "v2")
    }
    assert not torch.equal(keys["v1"], keys["v2"])
    halved = host.call("IPAdapterFaceID", **given, face_version="v2", weight_faceidv2=0.5)[0]
    assert not torch.equal(keys_of(halved), keys["v2"])


def test_kolors_passes_the_face_through_the_models_own_projection(
    host: Any, analysis: Any, photograph: torch.Tensor
) -> None:
    state = synthetic_adapter("Kolors FaceID Plus", "Kolors", tiny=True, device="cpu", seed=4)
    checkpoint = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(
        state, "kolors.bin"
    )
    adapter = host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)
    model = build_model(TINY_SDXL)
    given = {
        "model": model,
        "ipadapter": adapter,
        "image": photograph,
        "clip_vision": tiny_clip_vision(projected=48, hidden=80),
        "insightface": analysis,
    }
    with pytest.raises(ValueError, match="made for Kolors"):
        host.call("IPAdapterFaceIDKolors", **given)
    projection = torch.nn.Linear(adapter.spec.projected_dim, adapter.spec.token_dim)
    model.model.diffusion_model.encoder_hid_proj = projection
    one = keys_of(host.call("IPAdapterFaceIDKolors", **given)[0])
    two = keys_of(host.call("IPAdapterFaceIDKolors", **given, weight_kolors=2.0)[0])
    assert torch.allclose(two, 2 * one, atol=1e-5)


def test_without_face_analysis_the_node_says_so(host: Any, photograph: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no face analysis is connected"):
        host.call(
            "IPAdapterFaceID",
            model=build_model(TINY_SD15),
            ipadapter=adapter_of(host, "FaceID", "SD1.5"),
            image=photograph,
        )


def test_a_picture_without_a_face_is_named_or_skipped(
    host: Any, analysis: Any, photograph: torch.Tensor
) -> None:
    images = torch.cat([photograph, torch.full_like(photograph, 0.5)])
    given = {
        "model": build_model(TINY_SD15),
        "ipadapter": adapter_of(host, "FaceID", "SD1.5"),
        "image": images,
        "insightface": analysis,
    }
    with pytest.raises(ValueError, match="image 2"):
        host.call("IPAdapterFaceID", **given)
    _, faces = host.call("IPAdapterFaceID", **given, missing_face="skip")
    assert len(faces) == 1


@pytest.mark.parametrize("family", ["FaceID", "FaceID Plus"])
def test_a_negative_without_a_face_is_nobody(
    host: Any, analysis: Any, photograph: torch.Tensor, family: str
) -> None:
    """Published workflows connect noise. It has no identity; adapters that read a picture beside
    the face move away from that."""
    given = {
        "model": build_model(TINY_SD15),
        "ipadapter": adapter_of(host, family, "SD1.5"),
        "image": photograph,
        "clip_vision": tiny_clip_vision(projected=48, hidden=80),
        "insightface": analysis,
    }
    (noise,) = host.call("IPAdapterNoise", type="gaussian", strength=0.6, blur=0)

    def negative(**more: Any) -> torch.Tensor:
        patched = host.call("IPAdapterFaceID", **given, **more)[0]
        slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
        return slots[("middle", 0, 0)].injections[0].layer.uncond.key

    away, nothing = negative(image_negative=noise), negative()
    assert away.shape == nothing.shape
    assert torch.isfinite(away).all()
    assert torch.equal(away, nothing) == (family == "FaceID")
    assert not torch.equal(negative(image_negative=photograph), nothing)
