"""Attention maps: right by an independent computation, confined by masks, free when
not asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.scene import Scene, picture
from support.models.unets import TINY_SD15
from torch import Tensor


@pytest.fixture(scope="module")
def scene(host: Any) -> Scene:
    return Scene.build(host, TINY_SD15)


def recorded(
    scene: Scene, model: Any, show: str = "effect", blocks: str = "all"
) -> tuple[Any, Any]:
    return scene.host.call("IPAdapterRecordAttention", model=model, show=show, blocks=blocks)


def maps_of(scene: Scene, record: Any) -> Tensor:
    _, maps = scene.host.call(
        "IPAdapterAttentionMap", record=record, image=torch.rand(1, 16, 16, 3), opacity=0.5
    )
    return maps


def naive(query: Tensor, key: Tensor, value: Tensor, heads: int, images: int) -> tuple[Any, Any]:
    """Softmax written out in float64, head by head: shares per picture, and vectors added."""
    rows, length, width = query.shape
    dim, tokens = width // heads, key.shape[1] // images
    shares = torch.zeros(rows, images, length, dtype=torch.float64)
    added = torch.zeros(rows, images, length, width, dtype=torch.float64)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        q, k, v = (t[..., part].double() for t in (query, key, value))
        scores = torch.einsum("bld,btd->blt", q, k) / dim**0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        for image in range(images):
            own = slice(image * tokens, (image + 1) * tokens)
            shares[:, image] += weights[..., own].sum(-1) / heads
            added[:, image, :, part] = weights[..., own] @ v[:, own]
    return shares, added.norm(dim=-1)


@pytest.mark.parametrize("images", [1, 3])
def test_maps_equal_an_independent_computation(host: Any, images: int) -> None:
    maps = host.module("ipadapter.attention.maps")
    g = torch.Generator().manual_seed(0)
    query = torch.randn(2, 12, 32, generator=g)
    key, value = (torch.randn(2, 4 * images, 32, generator=g) for _ in range(2))
    shares, effect = naive(query, key, value, 4, images)
    for kind, expected in ((maps.MapKind.ATTENTION, shares), (maps.MapKind.EFFECT, effect)):
        found = maps.image_maps(query, key, value, 4, images, kind)
        assert (found - expected).abs().max() < 1e-5


def test_recording_changes_no_latent(scene: Scene) -> None:
    model = scene.apply()
    recording, record = recorded(scene, model)
    assert torch.equal(scene.sample(recording), scene.sample(model))
    assert maps_of(scene, record).shape == (1, 16, 16)


def test_a_mask_on_the_left_half_keeps_the_map_left(scene: Scene) -> None:
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1.0
    recording, record = recorded(scene, scene.apply(attn_mask=mask))
    scene.sample(recording)
    (heat,) = maps_of(scene, record)
    assert heat[:, :8].sum() > 0.9 * heat.sum()


def test_shares_of_all_pictures_add_up_and_each_has_its_map(scene: Scene) -> None:
    recording, record = recorded(scene, scene.apply(image=picture(1, images=3)), "attention")
    scene.sample(recording)
    (total,) = record._sums.values()
    assert total.shape[0] == 3
    assert torch.allclose(total.sum(0), total.sum(0).mean().expand(16, 16), rtol=1e-4)
    assert len(maps_of(scene, record)) == 3


def test_a_second_run_starts_anew_and_blocks_can_be_chosen(scene: Scene) -> None:
    model = scene.apply()
    recording, record = recorded(scene, model, blocks="output")
    scene.sample(recording)
    first = maps_of(scene, record)
    scene.sample(recording)
    assert torch.equal(maps_of(scene, record), first)
    whole, all_blocks = recorded(scene, model)
    scene.sample(whole)
    assert not torch.equal(maps_of(scene, all_blocks), first)


def test_what_cannot_be_recorded_is_said(scene: Scene) -> None:
    with pytest.raises(ValueError, match="carries no image prompt"):
        recorded(scene, scene.model)
    _, record = recorded(scene, scene.apply())
    with pytest.raises(ValueError, match="Nothing was recorded"):
        maps_of(scene, record)
