"""A block's slot: what it adds, when, for which rows; and what it leaves alone.

Every expectation is a naive attention per row; text attention is a stand-in that is easy to tell.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models.layouts import plain
from support.references import naive
from torch import Tensor

from ipadapter.attention.attn2_patch import AttentionPatch
from ipadapter.attention.folding import KeyValue, LayerKeyValue
from ipadapter.attention.injection import Injection
from ipadapter.attention.rows import CALL_KEY, CallState, items_of
from ipadapter.attention.sigmas import SigmaRange

WIDTH, HEADS, LENGTH, TOKENS = 16, 2, 6, 3
UNCOND_COND = {"n_heads": HEADS, "cond_or_uncond": [1, 0]}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(seed: int, items: int = 1, tokens: int = TOKENS) -> KeyValue:
    return KeyValue(
        random(items, tokens, WIDTH, seed=seed), random(items, tokens, WIDTH, seed=seed + 1)
    )


def injection(seed: int = 10, items: int = 1, **changes: Any) -> Injection:
    return Injection(LayerKeyValue(pair(seed, items), pair(seed + 2)), **changes)


def text(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
    return query * 0.5 + 1.0


def run(
    patch: Any, rows: int = 4, seed: int = 0, call: CallState | None = None, **extra: Any
) -> tuple[Tensor, Tensor]:
    """The query and what the patch makes of it. call: what the host's seam has noted."""
    extra |= {CALL_KEY: call} if call else {}
    query = random(rows, LENGTH, WIDTH, seed=seed)
    keys = random(rows, 4, WIDTH, seed=99)
    return query, patch(query, keys, keys, {**UNCOND_COND, **extra})


def added(injection: Injection, query: Tensor, rows: Sequence[tuple[bool, int]]) -> Tensor:
    """What an injection adds to each row, given as (is it cond, which item)."""
    parts = []
    for number, (is_cond, item) in enumerate(rows):
        layer = plain(injection.layer)
        kv = layer.cond if is_cond else layer.uncond
        key, value = (t[min(item, len(t) - 1)] for t in (kv.key, kv.value))
        parts.append(naive.attention(query[number], key, value, HEADS))
    return torch.stack(parts)


def assert_adds(out: Tensor, query: Tensor, *terms: Tensor) -> None:
    expected = text(query, query, query, {}).double() + sum(terms)
    assert (out - expected).abs().max() < 1e-5


TWO_AND_TWO = [(False, 0), (False, 1), (True, 0), (True, 1)]


def test_cond_and_uncond_rows_have_their_own_tokens() -> None:
    one = injection()
    query, out = run(AttentionPatch(text, [one]))
    assert_adds(out, query, added(one, query, TWO_AND_TWO))


@pytest.mark.parametrize(
    ("order", "conds"),
    [([0, 1], [True, False]), ([1], [False]), ([0], [True]), ([1, 0, 0], [False, True, True])],
)
def test_the_order_of_the_chunks_is_followed(order: list[int], conds: list[bool]) -> None:
    one = injection()
    query, out = run(AttentionPatch(text, [one]), rows=2 * len(order), cond_or_uncond=order)
    assert_adds(out, query, added(one, query, [(c, 0) for c in conds for _ in range(2)]))


def test_a_caller_that_says_nothing_is_all_cond() -> None:
    one, query = injection(), random(3, LENGTH, WIDTH)
    out = AttentionPatch(text, [one])(query, query, query, {"n_heads": HEADS})
    assert_adds(out, query, added(one, query, [(True, 0)] * 3))


def test_the_call_state_of_the_host_goes_before_its_options() -> None:
    one = injection()
    call = CallState((True, False), (0, 1))
    query, out = run(AttentionPatch(text, [one]), call=call)
    rows = [(True, 0), (True, 1), (False, 0), (False, 1)]
    assert_adds(out, query, added(one, query, rows))


def test_a_prompt_per_item_follows_the_items_and_repeats_the_last() -> None:
    one = injection(items=2)
    query, out = run(AttentionPatch(text, [one]), rows=6)
    rows = [(cond, item) for cond in (False, True) for item in range(3)]
    assert_adds(out, query, added(one, query, rows))


def test_weights_per_item_need_only_one_prompt() -> None:
    image = pair(10)
    weights = torch.tensor([0.25, 1.0, 0.0]).view(3, 1, 1)
    layer = LayerKeyValue(KeyValue(image.key, image.value * weights), pair(12))
    one = Injection(layer)
    query, out = run(AttentionPatch(text, [one]), rows=6)
    rows = [(cond, item) for cond in (False, True) for item in range(3)]
    assert_adds(out, query, added(one, query, rows))


class Window(SimpleNamespace):
    index_list: list[int]


@pytest.mark.parametrize(
    "extra",
    [
        {"context_window": Window(index_list=[2, 0])},
        {"ad_params": {"sub_idxs": [2, 0], "full_length": 3}},
        {"context_window": Window(index_list=[0], causal_anchor_index=2)},
        {"context_window": Window(index_list=[2, 0], causal_anchor_index=-1)},
    ],
    ids=["core window", "AnimateDiff", "core window with an anchor", "no anchor before it"],
)
def test_a_window_picks_its_items(extra: dict[str, Any]) -> None:
    one = injection(items=3)
    query, out = run(AttentionPatch(text, [one]), **extra)
    rows = [(False, 2), (False, 0), (True, 2), (True, 0)]
    assert_adds(out, query, added(one, query, rows))


def test_an_anchor_stands_before_its_window() -> None:
    window = Window(index_list=[3, 4, 5, 6], causal_anchor_index=2)
    assert items_of({"context_window": window}, 5) == (2, 3, 4, 5, 6)
    assert items_of({"context_window": window}, 4) == (3, 4, 5, 6)
    assert items_of({"context_window": window}, 10) == (2, 3, 4, 5, 6) * 2


def test_a_window_over_another_dimension_names_no_latents() -> None:
    assert items_of({"context_window": Window(index_list=[4, 5], dim=2)}, 2) == (0, 1)


def test_a_window_of_unknown_latents_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        items = items_of({"context_window": Window(index_list=[30, 31, 32])}, 7)
    assert set(items) <= {30, 31, 32} and list(items) == sorted(items)
    assert sum("names 3 latents and samples 7" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("window", [None, [], [0, 1, 2]], ids=["none", "empty", "does not divide"])
def test_a_window_that_does_not_fit_is_left_out(window: list[int] | None) -> None:
    one = injection(items=2)
    query, out = run(AttentionPatch(text, [one]), ad_params={"sub_idxs": window})
    assert_adds(out, query, added(one, query, TWO_AND_TWO))


def test_tiles_repeat_the_whole_batch() -> None:
    one = injection(items=2)
    call = CallState((False, True), (0, 1))
    query, out = run(AttentionPatch(text, [one]), rows=8, call=call)
    assert_adds(out, query, added(one, query, TWO_AND_TWO * 2))


def test_a_batch_made_up_otherwise_counts_rows_from_0() -> None:
    one = injection(items=3)
    call = CallState((False, True), (0, 1))
    query, out = run(AttentionPatch(text, [one]), rows=6, call=call)
    rows = [(cond, item) for cond in (False, True) for item in range(3)]
    assert_adds(out, query, added(one, query, rows))


def test_an_odd_batch_is_all_cond() -> None:
    one = injection()
    call = CallState((False, True), (0, 1))
    query, out = run(AttentionPatch(text, [one]), rows=3, call=call)
    assert_adds(out, query, added(one, query, [(True, 0)] * 3))


@pytest.mark.parametrize(
    ("sigma", "acts"), [(10.0, True), (2.1, True), (2.0, False), (10.1, False), (1.9, False)]
)
def test_outside_the_range_the_base_is_returned_as_it_is(sigma: float, acts: bool) -> None:
    base = random(4, LENGTH, WIDTH, seed=5)
    patch = AttentionPatch(lambda *_: base, [injection(sigmas=SigmaRange(10.0, 2.0))])
    kept = base.clone()
    _, out = run(patch, sigmas=torch.tensor([sigma]))
    assert torch.equal(out, kept) is not acts


def test_a_mask_confines_each_latent() -> None:
    masks = torch.zeros(2, 2, 3)
    masks[0, 0] = 1.0
    masks[1, :, 1:] = 0.5
    one = injection(mask=masks)
    query, out = run(AttentionPatch(text, [one]), activations_shape=(4, WIDTH, 2, 3))
    rows = masks.reshape(2, LENGTH, 1).repeat(2, 1, 1)
    assert_adds(out, query, rows * added(one, query, TWO_AND_TWO))


@pytest.mark.parametrize("counts", [(12, 4), (4, 12), (5, 4), (6, 4), (1, 7), (9, 6)])
@pytest.mark.parametrize("order", [[1, 0], [0], [1], [0, 1, 0]])
def test_prompts_of_unlike_length_act_as_if_alone(
    counts: tuple[int, int], order: list[int]
) -> None:
    one = Injection(LayerKeyValue(pair(10, tokens=counts[0]), pair(12, tokens=counts[1])))
    query, out = run(AttentionPatch(text, [one]), rows=2 * len(order), cond_or_uncond=order)
    rows = [(index == 0, item) for index in order for item in range(2)]
    assert_adds(out, query, added(one, query, rows))


def test_prompts_evaluated_alone_are_not_repeated() -> None:
    one = Injection(LayerKeyValue(pair(10, tokens=5), pair(12, tokens=4)))
    query = random(1, LENGTH, WIDTH)
    for is_cond, tokens in ((True, 5), (False, 4)):
        assert one.prepared(CallState((is_cond,), (0,)), query).key.shape[1] == tokens


def test_injections_add_up() -> None:
    first, second = injection(10), injection(20)
    query, out = run(AttentionPatch(text, [first]).with_injection(second))
    terms = (added(one, query, TWO_AND_TWO) for one in (first, second))
    assert_adds(out, query, *terms)


def test_what_held_the_slot_before_runs_first_and_keeps_its_output() -> None:
    held = random(4, LENGTH, WIDTH, seed=8)
    kept = held.clone()
    seen: list[Any] = []

    def previous(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
        seen.append(extra["n_heads"])
        return held

    one = injection()
    query, out = run(AttentionPatch(text, [one], previous=previous))
    assert seen == [HEADS]
    assert (out - kept - added(one, query, TWO_AND_TWO)).abs().max() < 1e-5
    assert torch.equal(held, kept)  # another pack may hold on to what it returned


def test_the_query_is_never_written() -> None:
    query = random(4, LENGTH, WIDTH)
    patch = AttentionPatch(lambda q, *_: q, [injection()], previous=lambda q, *_: q)
    patch(query, query, query, UNCOND_COND)
    assert torch.equal(query, random(4, LENGTH, WIDTH))


def test_adding_an_injection_leaves_the_patch_alone() -> None:
    patch = AttentionPatch(text, [injection()])
    before = run(patch)[1]
    other = patch.with_injection(injection(20))
    assert len(patch.injections) == 1 and len(other.injections) == 2
    assert torch.equal(run(patch)[1], before)
    assert not torch.allclose(run(other)[1], before)


def test_keys_and_values_survive_a_run() -> None:
    one = injection()
    layer = plain(one.layer)
    tensors = [t for kv in (layer.cond, layer.uncond) for t in (kv.key, kv.value)]
    before = [tensor.clone() for tensor in tensors]
    run(AttentionPatch(text, [one]))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


Change = Callable[[AttentionPatch], AttentionPatch]
CHANGES: dict[str, Change] = {
    "fork": AttentionPatch.fork,
    "with_injection": lambda patch: patch.with_injection(injection(20)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stacked_onto_a_copy_stays_there(change: str) -> None:
    patch = AttentionPatch(text, [injection()])
    before = run(patch)[1]
    copied = CHANGES[change](patch)
    copied.add(lambda out, q, k, v, extra: torch.ones_like(out))
    assert torch.equal(run(patch)[1], before)


def test_a_stacked_term_is_added_with_its_arguments() -> None:
    patch = AttentionPatch(text)
    seen: dict[str, Any] = {}

    def term(out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra: Any, **kwargs: Any) -> Tensor:
        seen.update(kwargs, out=out.clone())
        return torch.full_like(out, kwargs["weight"])

    patch.add(term, weight=0.25, sigma_start=10.0, sigma_end=2.0)
    query, out = run(patch, sigmas=torch.tensor([5.0]))
    assert_adds(out, query, torch.tensor(0.25))
    assert seen["weight"] == 0.25 and torch.equal(seen["out"], text(query, query, query, {}))


@pytest.mark.parametrize(
    ("sigma", "acts"), [(11.0, False), (10.0, True), (2.0, True), (1.0, False)]
)
def test_a_stacked_term_acts_in_its_own_range(sigma: float, acts: bool) -> None:
    patch = AttentionPatch(text)
    patch.add(lambda out, *_, **kwargs: torch.ones_like(out), sigma_start=10.0, sigma_end=2.0)
    query, out = run(patch, sigmas=torch.tensor([sigma]))
    assert torch.equal(out, text(query, query, query, {})) is not acts


@pytest.mark.parametrize("how", [copy.deepcopy, lambda p: p.to("cpu"), lambda p: p.to(torch.half)])
def test_the_host_may_copy_and_move_it_for_free(how: Callable[[Any], Any]) -> None:
    patch = AttentionPatch(text, [injection()])
    assert how(patch) is patch


def test_the_host_is_told_of_what_held_the_slot_before() -> None:
    calls: list[str] = []
    before = SimpleNamespace(models=lambda: ["patcher"], cleanup=lambda: calls.append("cleanup"))
    patch = AttentionPatch(text, previous=before)  # type: ignore[arg-type]
    assert patch.models() == ["patcher"]
    patch.cleanup()
    assert calls == ["cleanup"]
    assert AttentionPatch(text, previous=text).models() == []
    AttentionPatch(text).cleanup()


def test_bytes_are_those_of_keys_and_values() -> None:
    patch = AttentionPatch(text, [injection(), injection(20)])
    assert patch.nbytes() == 2 * 4 * TOKENS * WIDTH * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keys_and_values_follow_the_query(dtype: torch.dtype) -> None:
    one, query = injection(), random(4, LENGTH, WIDTH).to(dtype)
    out = AttentionPatch(text, [one])(query, query, query, UNCOND_COND)
    assert out.dtype == dtype
    exact = text(query.double(), query, query, {}) + added(one, query, TWO_AND_TWO)
    assert (out.double() - exact).abs().max() < 16 * torch.finfo(dtype).eps


def test_full_precision_attention_is_kept_where_the_host_asks_for_it() -> None:
    one, query = injection(), 40 * random(4, LENGTH, WIDTH)
    extra = {**UNCOND_COND, "attn_precision": torch.float32}
    half = query.half()
    zero = AttentionPatch(lambda q, *_: torch.zeros_like(q), [one])
    out = zero(half, half, half, extra)
    assert out.dtype == torch.float16
    layer = plain(one.layer)
    kv = Injection(LayerKeyValue(_half(layer.cond), _half(layer.uncond)))
    assert (out.double() - added(kv, half, TWO_AND_TWO)).abs().max() < 3e-3


def _half(kv: KeyValue) -> KeyValue:
    return KeyValue(kv.key.half(), kv.value.half())


def test_gradients_flow_through_a_patch() -> None:
    query = random(4, LENGTH, WIDTH).requires_grad_()
    out = AttentionPatch(text, [injection()])(query, query, query, UNCOND_COND)
    out.sum().backward()
    assert query.grad is not None and torch.isfinite(query.grad).all()
