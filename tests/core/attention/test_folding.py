"""Folding against formulas written out one token, one item and one layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ipadapter.attention.folding import EmbedsScaling, KeyValue, LayerKeyValue, fold
from ipadapter.attention.weight_types import LayerRule, Source

WIDTH, TOKENS, HEADS = 16, 5, 2


def pair(seed: int, items: int = 1, tokens: int = TOKENS) -> KeyValue:
    g = torch.Generator().manual_seed(seed)
    return KeyValue(*torch.randn(2, items, tokens, WIDTH, generator=g))


def sources(items: int = 1) -> dict[Source, KeyValue]:
    return {Source.IMAGE: pair(1, items), Source.NEGATIVE: pair(2)}


def attend(query: Tensor, kv: KeyValue, item: int = 0) -> Tensor:
    """Softmax attention of one head, (rows, width), in float64."""
    key, value = kv.key[min(item, len(kv.key) - 1)], kv.value[min(item, len(kv.value) - 1)]
    scores = query.double() @ key.double().T / math.sqrt(WIDTH)
    return scores.softmax(-1) @ value.double()


# What a node says it does, for one item: (query, key, value, weight) -> what is added.
def v_only(query: Tensor, key: Tensor, value: Tensor, weight: float) -> Tensor:
    return weight * attend(query, KeyValue(key[None], value[None]))


def k_and_v(query: Tensor, key: Tensor, value: Tensor, weight: float) -> Tensor:
    return weight * attend(query, KeyValue(weight * key[None], value[None]))


def penalised(query: Tensor, key: Tensor, value: Tensor, weight: float) -> Tensor:
    return k_and_v(query, key, value, weight * WIDTH / 1280)


def mean_penalised(query: Tensor, key: Tensor, value: Tensor, weight: float) -> Tensor:
    small = weight * WIDTH / 1280
    mean = torch.stack([value[token] for token in range(len(value))]).sum(0) / len(value)
    rest = torch.stack([value[token] - mean for token in range(len(value))])
    return attend(query, KeyValue(small * key[None], rest[None])) + small * mean.double()


NAIVE: dict[EmbedsScaling, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    EmbedsScaling.V_ONLY: v_only,
    EmbedsScaling.K_AND_V: k_and_v,
    EmbedsScaling.K_AND_V_PENALTY: penalised,
    EmbedsScaling.K_AND_MEAN_V_PENALTY: mean_penalised,
}
ALL_SCALINGS = pytest.mark.parametrize("scaling", EmbedsScaling, ids=lambda s: s.value)


def folded(*args: object, **kwargs: object) -> LayerKeyValue:
    result = fold(*args, **kwargs)  # type: ignore[arg-type]
    assert result is not None
    return result


@ALL_SCALINGS
@given(weight=st.floats(-1, 5).filter(bool), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_scalings_equal_their_formulas(scaling: EmbedsScaling, weight: float, seed: int) -> None:
    query = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(seed))
    kv = sources()
    result = folded(kv, [LayerRule(weight)], scaling, torch.float32)
    for row, source in ((result.cond, Source.IMAGE), (result.uncond, Source.NEGATIVE)):
        naive = NAIVE[scaling](query, kv[source].key[0], kv[source].value[0], weight)
        assert (attend(query, row) - naive).abs().max() < 1e-5


def test_widget_strings_are_the_fields_own() -> None:
    assert [scaling.value for scaling in EmbedsScaling] == [
        "V only",
        "K+V",
        "K+V w/ C penalty",
        "K+mean(V) w/ C penalty",
    ]


@ALL_SCALINGS
def test_a_layer_of_weight_0_rests(scaling: EmbedsScaling) -> None:
    assert fold(sources(), [LayerRule(0.0)], scaling, torch.float32) is None
    assert fold(sources(3), [LayerRule(0.0)] * 3, scaling, torch.float32) is None


@ALL_SCALINGS
@pytest.mark.parametrize("items", [1, 3], ids=["one prompt", "a prompt per item"])
def test_each_item_has_its_weight(scaling: EmbedsScaling, items: int) -> None:
    weights = [0.5, 0.0, -1.5]
    kv, query = sources(items), torch.randn(4, WIDTH)
    rules = [LayerRule(weight) for weight in weights]
    result = folded(kv, rules, scaling, torch.float32)
    for item, weight in enumerate(weights):
        source = kv[Source.IMAGE]
        of_item = min(item, items - 1)
        naive = NAIVE[scaling](query, source.key[of_item], source.value[of_item], weight)
        assert (attend(query, result.cond, item) - naive).abs().max() < 1e-5


@ALL_SCALINGS
def test_an_item_of_weight_0_adds_exactly_nothing(scaling: EmbedsScaling) -> None:
    result = folded(sources(), [LayerRule(0.0), LayerRule(1.0)], scaling, torch.float32)
    for row in (result.cond, result.uncond):
        assert not row.value[0].any() and row.value[1].any()


def test_a_swap_gives_the_image_to_the_uncond_rows_alone() -> None:
    kv = sources()
    rule = LayerRule(0.5, cond=Source.ZERO, uncond=Source.IMAGE)
    result = folded(kv, [rule], EmbedsScaling.V_ONLY, torch.float32)
    assert not result.cond.key.any() and not result.cond.value.any()
    assert torch.equal(result.uncond.key, kv[Source.IMAGE].key)
    assert torch.equal(result.uncond.value, 0.5 * kv[Source.IMAGE].value)


@pytest.mark.parametrize("given", [True, False], ids=["given", "missing"])
def test_the_second_image_is_used_where_it_is_asked_for(given: bool) -> None:
    kv = sources() | ({Source.SECOND_IMAGE: pair(3)} if given else {})
    rule = LayerRule(1.0, cond=Source.SECOND_IMAGE)
    result = folded(kv, [rule], EmbedsScaling.V_ONLY, torch.float32)
    expected = kv[Source.SECOND_IMAGE if given else Source.IMAGE]
    assert torch.equal(result.cond.value, expected.value)
    assert torch.equal(result.uncond.value, kv[Source.NEGATIVE].value)


@ALL_SCALINGS
@pytest.mark.parametrize("weight", [5.0, -5.0])
def test_half_precision_saturates(scaling: EmbedsScaling, weight: float) -> None:
    huge = KeyValue(torch.full((1, 2, 1280), 60000.0), torch.full((1, 2, 1280), -60000.0))
    kv = {Source.IMAGE: huge, Source.NEGATIVE: huge}
    result = folded(kv, [LayerRule(weight)], scaling, torch.float16)
    for tensor in (result.cond.key, result.cond.value, result.uncond.key, result.uncond.value):
        assert tensor.dtype == torch.float16
        assert torch.isfinite(tensor).all()
    assert result.cond.value.abs().max() == torch.finfo(torch.float16).max


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_are_those_of_keys_and_values(dtype: torch.dtype) -> None:
    result = folded(sources(), [LayerRule(1.0)], EmbedsScaling.V_ONLY, dtype)
    assert result.nbytes() == 4 * TOKENS * WIDTH * dtype.itemsize
    moved = result.to(torch.device("meta"))
    assert moved.cond.key.device.type == "meta" and moved.nbytes() == result.nbytes()


def test_what_was_folded_does_not_change_with_its_source() -> None:
    kv = sources()
    kept = kv[Source.IMAGE].value.clone()
    folded(kv, [LayerRule(3.0)], EmbedsScaling.K_AND_MEAN_V_PENALTY, torch.float32)
    assert torch.equal(kv[Source.IMAGE].value, kept)
