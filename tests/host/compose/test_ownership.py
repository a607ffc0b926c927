"""Slots that several packs want, and tensors that others hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from support.hosts.compose import Pack, Prompt, Scene, difference, sample, with_reference
from support.hosts.neighbours import foreign_chain, foreign_function, node

TOLERANCE = 1e-5
A, B = Prompt(3), Prompt(4, weights=(0.5,))
KEYS = {"short": (), "full": (0,)}
OTHERS = {
    f"{name}, {key}": partial(change, index=index)
    for (name, change), (key, index) in product(
        {"rude": foreign_function, "polite": foreign_chain}.items(), KEYS.items()
    )
}


def built(host: Any, scene: Scene, pack: Pack, steps: list[Any]) -> Scene:
    """A scene whose MODEL went through these nodes, with what the reference must know."""
    plain = scene.model
    for step in steps:
        if isinstance(step, Prompt):
            scene = scene.but(model=pack.apply(scene.model, step))
        else:
            scene = step(host, scene)
    return scene.but(reference={**scene.reference, "model": plain})


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("order", ["A f B", "f A B", "A B f", "A f B f", "f A f B", "A f f B"])
def test_every_term_acts_once(host: Any, scene: Scene, pack: Pack, other: str, order: str) -> None:
    parts: dict[str, Any] = {"A": A, "B": B, "f": OTHERS[other]}
    made = built(host, scene, pack, [parts[letter] for letter in order.split()])
    got = sample(made)
    assert difference(got, with_reference(made, A, B)) < TOLERANCE
    assert torch.equal(sample(made), got)
    assert difference(got, sample(scene)) > 1e-3


@pytest.mark.parametrize(("first", "second"), list(product(OTHERS, OTHERS)))
def test_a_polite_pack_after_a_rude_one(
    host: Any, scene: Scene, pack: Pack, first: str, second: str
) -> None:
    if second.startswith("rude") and first.startswith("polite"):
        pytest.skip("what a rude pack overwrites of others is its own affair")
    made = built(host, scene, pack, [A, OTHERS[first], B, OTHERS[second]])
    assert difference(sample(made), with_reference(made, A, B)) < TOLERANCE


def test_an_adapter_that_was_taken_away_stays_away(scene: Scene, pack: Pack) -> None:
    taken = pack.apply(scene.model, A).clone()
    options = taken.model_options["transformer_options"]
    taken.model_options["transformer_options"] = {**options, "patches_replace": {}}
    assert torch.equal(sample(scene, taken), sample(scene))
    again = pack.apply(taken, B)
    assert difference(sample(scene, again), with_reference(scene, B)) < TOLERANCE


Override = Callable[..., torch.Tensor]


def keeping(kept: list[tuple[torch.Tensor, torch.Tensor]]) -> Override:
    def override(attention: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = attention(*args, **kwargs)
        kept.append((out, out.clone()))
        return out

    return override


def overridden(model: Any, override: Override) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def needs_override(host: Any) -> None:
    import comfy.ldm.modules.attention as host_attention

    if not hasattr(host_attention, "wrap_attn"):
        pytest.skip("this host has no attention override")


def test_a_result_that_somebody_keeps_is_not_written_to(
    host: Any, scene: Scene, pack: Pack
) -> None:
    needs_override(host)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = overridden(pack.apply(scene.model, A), keeping(kept))
    assert difference(sample(scene, model), with_reference(scene, A)) < TOLERANCE
    assert kept and all(torch.equal(out, then) for out, then in kept)


def test_a_result_that_is_one_row_for_all_is_taken(host: Any, scene: Scene, pack: Pack) -> None:
    needs_override(host)

    def expanded(attention: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = attention(*args, **kwargs)
        return out.mean(dim=1, keepdim=True).expand_as(out)

    def whole(attention: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return expanded(attention, *args, **kwargs).contiguous()

    patched = pack.apply(scene.model, A)
    expected = sample(scene, overridden(patched, whole))
    assert difference(sample(scene, overridden(patched, expanded)), expected) < TOLERANCE


def test_a_pack_that_replaces_the_hosts_attention_may_keep_its_results(
    scene: Scene, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.modules.attention as host_attention

    real, kept = host_attention.optimized_attention, []

    def replacing(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = real(*args, **kwargs)
        kept.append((out, out.clone()))
        return out

    monkeypatch.setattr(host_attention, "optimized_attention", replacing)
    sample(scene, pack.apply(scene.model, A))
    assert kept and all(torch.equal(out, then) for out, then in kept)


def test_another_branchs_compute_dtype_does_not_reach_this_one(
    host: Any, scene: Scene, pack: Pack
) -> None:
    """The host leaves a branch's object patches in the shared network until another one loads."""

    def dtypes(model: Any) -> set[torch.dtype]:
        slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
        return {one.layer.cond.key.dtype for patch in slots.values() for one in patch.injections}

    before = dtypes(pack.apply(scene.model, A))
    half = node("ModelComputeDtype", dtype="bf16")(host, scene)
    sample(half)
    assert dtypes(pack.apply(scene.model, A)) == before == {torch.float32}
    assert dtypes(pack.apply(half.model, A)) == {torch.bfloat16}
