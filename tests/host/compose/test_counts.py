"""Prompts of different length side by side: any number of references with any number of negatives,
at every CFG and however many prompts the memory holds at a time."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from support.hosts.applied import applied
from support.hosts.compose import (
    TOKENS,
    Pack,
    Prompt,
    Scene,
    difference,
    naive_adapter,
    sample,
    seeded,
    with_reference,
)
from support.hosts.wires import tiny_wires
from support.models.unets import TINY_SD15
from torch import Tensor

TOLERANCE = 1e-5
COUNTS = [pair for pair in product((1, 2, 3, 5), repeat=2) if pair != (1, 1)]


def tokens(pictures: int, seed: int, items: int = 1) -> Tensor:
    return seeded(seed, items, pictures * TOKENS, TINY_SD15.context_dim)


def both_ways(
    scene: Scene, pack: Pack, cond: Tensor, uncond: Tensor, weights: tuple[float, ...] = (0.8,)
) -> tuple[Tensor, Tensor]:
    """The pack's result and the reference's."""
    prompt = Prompt(weights=weights)
    adapter, _, weighting = pack.parts(prompt)
    image = pack.module("adapters.prompt").ImagePrompt(cond, uncond)
    model = applied(pack.module, scene.model, adapter, image, weighting)
    reference = naive_adapter(scene, prompt, cond=cond, uncond=uncond)
    return sample(scene, model), with_reference(scene, reference)


@pytest.mark.parametrize(("references", "negatives"), COUNTS)
def test_any_pair_of_counts_is_exact(
    scene: Scene, pack: Pack, references: int, negatives: int
) -> None:
    got, expected = both_ways(scene, pack, tokens(references, 1), tokens(negatives, 2))
    assert difference(got, expected) < TOLERANCE


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("free", [0, 1 << 40], ids=["one prompt at a time", "all at once"])
def test_at_every_cfg_and_memory_state(
    scene: Scene, pack: Pack, cfg: float, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda _=None, both=False: (free, free) if both else free,
    )
    got, expected = both_ways(scene.but(cfg=cfg), pack, tokens(3, 1), tokens(2, 2))
    assert difference(got, expected) < TOLERANCE


def test_a_prompt_per_latent_beside_a_longer_negative(scene: Scene, pack: Pack) -> None:
    """Weights per latent and three references with two negatives."""
    scene, weights = scene.but(batch=3), (0.8, 0.0, -0.4)
    got, expected = both_ways(scene, pack, tokens(3, 1, items=3), tokens(2, 2), weights)
    assert difference(got, expected) < TOLERANCE


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 40, 40, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("combine", ["concat", "average", "add", "norm average", "subtract"])
@pytest.mark.parametrize(
    ("node", "name", "second"),
    [
        ("IPAdapterAdvanced", "image", ""),
        ("IPAdapterStyleComposition", "image_style", "image_composition"),
        ("IPAdapterPreciseStyleTransfer", "image", ""),
        ("IPAdapterPreciseComposition", "image", ""),
    ],
)
def test_nodes_take_any_number_of_pictures(
    host: Any, scene: Scene, node: str, name: str, second: str, combine: str
) -> None:
    wires = {**tiny_wires(host), "model": scene.model}
    wires.pop("image")
    given = {name: pictures(3, 1), "image_negative": pictures(2, 2), "combine_embeds": combine}
    given |= {second: pictures(2, 3)} if second else {}
    (model,) = host.call(node, **wires, **given)
    recording, record = host.call(
        "IPAdapterRecordAttention", model=model, show="effect", blocks="all"
    )
    assert torch.equal(sample(scene, recording), sample(scene, model))
    each = combine == "concat"
    assert len(record.maps()) == (3 if each else 1) + ((2 if each else 1) if second else 0)
    assert torch.isfinite(record.maps()).all()


def test_counts_that_would_take_too_much_are_refused_at_the_node(host: Any, scene: Scene) -> None:
    wires = {**tiny_wires(host), "model": scene.model, "image": pictures(47, 1)}
    with pytest.raises(
        ValueError, match=r"47 references and 46 negatives together.*embeds-mismatch"
    ):
        host.call("IPAdapterAdvanced", **wires, image_negative=pictures(46, 2))
