"""Lists whose positions mean something: picture, weight and mask i are those of latent i, also
where a picture has no face, where tiles have masks of their own, where the enhancer looks closer.

Every expectation samples the same batch with one picture, weight and mask for all, and takes the
latent in question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.hosts.compose import Scene, difference, sample, seeded
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, random_adapter
from support.models.vision import tiny_clip_vision
from torch import Tensor

TOLERANCE = 1e-5
FACE_BATCH = "IPAAdapterFaceIDBatch"


@pytest.fixture(scope="module")
def analysis(host: Any) -> Any:
    pytest.importorskip("insightface")
    from tools.face_models import ensure_pack

    ensure_pack(host.base / "models" / "insightface", "buffalo_l")
    (loaded,) = host.call("IPAdapterInsightFaceLoader", provider="CPU", model_name="buffalo_l")
    return loaded


def people() -> dict[str, Tensor]:
    """Three pictures with a face, (1, 512, 512, 3) each, and one with nobody."""
    from tools.face_models import astronaut

    someone = torch.from_numpy(astronaut().copy())[None].float() / 255
    light = {"A": 1.0, "B": 0.96, "C": 1.04}
    found = {name: (someone * factor).clamp(0, 1) for name, factor in light.items()}
    return {**found, "-": torch.full_like(someone, 0.5)}


def adapter_of(host: Any, state: Any, name: str = "adapter.bin") -> Any:
    checkpoint = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(state, name)
    return host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)


def strong(state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """With layers that show in the latents."""
    layers = {key: value / value.std() * 0.3 for key, value in state["ip_adapter"].items()}
    return {**state, "ip_adapter": layers}


@pytest.fixture(params=["FaceID", "FaceID Plus v2"])
def wires(host: Any, request: Any, scene: Scene, analysis: Any) -> dict[str, Any]:
    state = strong(synthetic_adapter(request.param, "SD1.5", tiny=True, device="cpu", seed=4))
    return {
        "model": scene.model,
        "ipadapter": adapter_of(host, state),
        "clip_vision": tiny_clip_vision(projected=48, hidden=80),
        "insightface": analysis,
    }


def shown(names: str) -> Tensor:
    return torch.cat([people()[name] for name in names])


def latent_by_latent(scene: Scene, models: Sequence[Any]) -> Tensor:
    """Latent i of a whole batch that MODEL i samples."""
    return torch.cat([sample(scene, model)[i : i + 1] for i, model in enumerate(models)])


@pytest.mark.parametrize(
    ("pictures", "latents"),
    [("A-BC", "A-BC"), ("-AB", "-AB"), ("A-", "A---"), ("AB-C", "AB-CC"), ("A-BC", "A-")],
)
def test_a_latent_without_a_face_gets_nothing(
    host: Any, scene: Scene, wires: dict[str, Any], pictures: str, latents: str
) -> None:
    scene = scene.but(batch=len(latents))
    model, faces = host.call(FACE_BATCH, **wires, image=shown(pictures), missing_face="skip")
    alone = {
        name: host.call(FACE_BATCH, **wires, image=people()[name])[0]
        for name in set(latents) - {"-"}
    }
    expected = latent_by_latent(scene, [alone.get(name, scene.model) for name in latents])
    got = sample(scene, model)
    assert difference(got, expected) < TOLERANCE
    nothing = sample(scene)
    for latent, name in enumerate(latents):
        assert torch.equal(got[latent], nothing[latent]) == (name == "-"), latent
    grey = host.module("ipadapter.pictures.images").CLIP_MEAN
    assert len(faces) == len(pictures)
    for face, name in zip(faces, pictures, strict=True):
        assert torch.equal(face, torch.tensor(grey).expand_as(face)) == (name == "-")


def test_weights_and_masks_stay_in_step(host: Any, scene: Scene, wires: dict[str, Any]) -> None:
    scene, weights = scene.but(batch=4), [0.4, 0.6, 0.8, -0.5]
    masks = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(3))
    model, _ = host.call(
        FACE_BATCH,
        **wires,
        image=shown("A-BC"),
        missing_face="skip",
        weight=weights,
        attn_mask=masks,
        weight_faceidv2=1.0,
    )
    alone = [
        host.call(
            FACE_BATCH,
            **wires,
            image=people()[name],
            weight=weights[latent],
            attn_mask=masks[latent : latent + 1],
            weight_faceidv2=1.0,
        )[0]
        if name != "-"
        else scene.model
        for latent, name in enumerate("A-BC")
    ]
    assert difference(sample(scene, model), latent_by_latent(scene, alone)) < TOLERANCE


def test_a_negative_without_a_face_is_no_negative(
    host: Any, scene: Scene, wires: dict[str, Any]
) -> None:
    scene = scene.but(batch=3)
    model, _ = host.call(
        FACE_BATCH,
        **wires,
        image=people()["A"],
        image_negative=shown("B-C"),
        missing_face="skip",
    )
    alone = [
        host.call(
            FACE_BATCH,
            **wires,
            image=people()["A"],
            **({} if name == "-" else {"image_negative": people()[name]}),
        )[0]
        for name in "B-C"
    ]
    assert difference(sample(scene, model), latent_by_latent(scene, alone)) < TOLERANCE


def test_any_batch_node_keeps_step(host: Any, scene: Scene, wires: dict[str, Any]) -> None:
    """Python callers give missing_face to the other batch nodes too."""
    scene = scene.but(batch=3)
    node = host.node("IPAdapterBatch")()
    given = {**wires, "missing_face": "skip", "weight_faceidv2": 1.0}
    (model, *_) = node.apply_ipadapter(**given, image=shown("A-B"))
    alone = [node.apply_ipadapter(**given, image=people()[name])[0] for name in "AB"]
    expected = latent_by_latent(scene, [alone[0], scene.model, alone[1]])
    assert difference(sample(scene, model), expected) < TOLERANCE


def test_one_prompt_of_several_pictures_leaves_faceless_ones_out(
    host: Any, scene: Scene, wires: dict[str, Any]
) -> None:
    skipped, faces = host.call("IPAdapterFaceID", **wires, image=shown("A-B"), missing_face="skip")
    both, _ = host.call("IPAdapterFaceID", **wires, image=shown("AB"))
    assert len(faces) == 2 and torch.equal(sample(scene, skipped), sample(scene, both))


# Tiles and the enhancer --------------------------------------------------------------------------


@pytest.fixture
def plain(host: Any, scene: Scene) -> dict[str, Any]:
    """Wires of an adapter that reads pictures."""
    state = strong(random_adapter(TINY_SD15, plus=True, embed_dim=64))
    encoder = tiny_clip_vision(projected=48, hidden=64)
    return {"model": scene.model, "ipadapter": adapter_of(host, state), "clip_vision": encoder}


def pictures(count: int, height: int = 40, width: int = 40) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("node", ["IPAdapterTiled", "IPAdapterTiledBatch"])
@pytest.mark.parametrize("masks", [1, 2, 3])
def test_tiles_keep_the_masks_of_all_latents(
    host: Any, scene: Scene, plain: dict[str, Any], node: str, masks: int
) -> None:
    scene, image = scene.but(batch=3), pictures(1, 40, 90)
    area = (seeded(masks, masks, 32, 72) > 0).float()
    area[0, :, :30] = 0.0
    model, tiles, acts = host.call(node, **plain, image=image, attn_mask=area)
    alone = [
        host.call(node, **plain, image=image, attn_mask=area[i : i + 1])[0]
        for i in (min(latent, masks - 1) for latent in range(3))
    ]
    assert difference(sample(scene, model), latent_by_latent(scene, alone)) < TOLERANCE
    assert acts.shape == (len(tiles) * masks, 32, 72)
    assert torch.equal(acts.unflatten(0, (len(tiles), masks)).sum(0), area)


def test_tiles_where_a_mask_is_black_are_left_out(
    host: Any, scene: Scene, plain: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    area = torch.zeros(1, 32, 64)
    area[..., :20] = 1.0
    model, *_ = host.call("IPAdapterTiled", **plain, image=pictures(1, 32, 64), attn_mask=area)
    slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert {len(slot.injections) for slot in slots.values()} == {1}
    assert "black" not in caplog.text


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_enhancer_gives_each_latent_its_own_picture(
    host: Any, scene: Scene, plain: dict[str, Any], count: int
) -> None:
    scene, image, node = scene.but(batch=3), pictures(count), "IPAdapterClipVisionEnhancerBatch"
    (model,) = host.call(node, **plain, image=image, enhance_tiles=2, enhance_ratio=0.5)
    alone = [
        host.call(
            node,
            **plain,
            image=image[[min(latent, count - 1)]],
            enhance_tiles=2,
            enhance_ratio=0.5,
        )[0]
        for latent in range(3)
    ]
    assert difference(sample(scene, model), latent_by_latent(scene, alone)) < TOLERANCE
    if count == 1:  # one picture: every latent gets the same, the mix of whole and detail
        slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
        assert {one.items for slot in slots.values() for one in slot.injections} == {1}
