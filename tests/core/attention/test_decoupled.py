"""The image half of attention against a softmax written out in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import naive
from torch import Tensor

from ipadapter.attention import by_head
from ipadapter.attention.decoupled import add_image_attention, image_attention
from ipadapter.attention.mask import Factor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    groups=st.integers(1, 3),
    length=st.integers(1, 9),
    tokens=st.integers(1, 17),
    heads=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=30, deadline=None)
def test_equals_a_naive_softmax(groups: int, length: int, tokens: int, heads: int) -> None:
    query, key, value = (random(groups, n, 16, seed=n) for n in (length, tokens, tokens))
    out = image_attention(query, key, value, heads)
    assert out.shape == query.shape
    for group in range(groups):
        expected = naive.attention(query[group], key[group], value[group], heads)
        assert (out[group] - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3)])
def test_consecutive_rows_share_the_keys_of_their_group(rows: int, groups: int) -> None:
    base, query = random(rows, 5, 16), random(rows, 5, 16, seed=1)
    key, value = random(groups, 3, 16, seed=2), random(groups, 3, 16, seed=3)
    out = add_image_attention(base.clone(), query, key, value, 2)
    for row in range(rows):
        group = row * groups // rows
        expected = base[row] + naive.attention(query[row], key[group], value[group], 2)
        assert (out[row] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("mask_rows", [1, 4])
def test_a_mask_scales_each_position(mask_rows: int) -> None:
    base, query = random(4, 5, 16), random(4, 5, 16, seed=1)
    key, value = random(2, 3, 16, seed=2), random(2, 3, 16, seed=3)
    mask = torch.rand(mask_rows, 5, 1, generator=torch.Generator().manual_seed(4))
    whole = add_image_attention(base.clone(), query, key, value, 2) - base
    masked = add_image_attention(base.clone(), query, key, value, 2, Factor(mask))
    assert torch.allclose(masked, base + mask * whole, atol=1e-6)


def test_a_mask_of_zeros_leaves_the_base_bit_for_bit() -> None:
    base, query = random(2, 5, 16), random(2, 5, 16, seed=1)
    kv = random(1, 3, 16, seed=2)
    out = add_image_attention(base.clone(), query, kv, kv, 2, Factor(torch.zeros(1, 5, 1)))
    assert torch.equal(out, base)


@pytest.mark.parametrize("mask", [None, torch.full((1, 5, 1), 0.5)], ids=["plain", "masked"])
def test_gradients_reach_every_input_and_nothing_is_overwritten(mask: Tensor | None) -> None:
    base, query = random(2, 5, 16).double(), random(2, 5, 16, seed=1).double()
    key, value = random(1, 3, 16, seed=2).double(), random(1, 3, 16, seed=3).double()
    inputs = [tensor.requires_grad_() for tensor in (base, query, key, value)]
    before = base.detach().clone()
    wide = None if mask is None else mask.double()

    def run(*args: Tensor) -> Tensor:
        return add_image_attention(*args, 2, Factor(wide))  # type: ignore[misc]

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.equal(base, before)


def test_a_base_that_the_graph_needs_keeps_its_gradient() -> None:
    leaf = random(2, 5, 16).requires_grad_()
    base = leaf.sigmoid()  # its backward reads its own output
    kv = random(1, 3, 16, seed=2)
    add_image_attention(base, random(2, 5, 16, seed=1), kv, kv, 2).sum().backward()
    expected = leaf.detach().sigmoid() * (1 - leaf.detach().sigmoid())
    assert leaf.grad is not None and torch.allclose(leaf.grad, expected)


def test_without_gradients_the_base_is_reused() -> None:
    base, kv = random(2, 5, 16), random(1, 3, 16, seed=2)
    with torch.no_grad():
        assert add_image_attention(base, random(2, 5, 16, seed=1), kv, kv, 2) is base


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_and_close(dtype: torch.dtype) -> None:
    base, query = random(2, 5, 16).to(dtype), random(2, 5, 16, seed=1).to(dtype)
    kv = random(1, 3, 16, seed=2).to(dtype)
    out = add_image_attention(base.clone(), query, kv, kv, 2)
    expected = base[0].double() + naive.attention(query[0], kv[0], kv[0], 2)
    assert out.dtype == dtype
    assert (out[0].double() - expected).abs().max() < 5 * torch.finfo(dtype).eps * 4


@pytest.mark.parametrize("tokens", [4, 31, 32, 96, 97])
@pytest.mark.parametrize("mask_rows", [0, 1, 6])
def test_every_form_gives_the_same(
    tokens: int, mask_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_head, "_BY_HEAD", ((1, 96, 8),))
    monkeypatch.setattr(by_head, "_SCORES", 8 * tokens * 7)  # queries in pieces of seven
    base, query = random(6, 20, 64), random(6, 20, 64, seed=1)
    key, value = random(2, tokens, 64, seed=2), random(2, tokens, 64, seed=3)
    mask = random(mask_rows, 20, 1, seed=4) if mask_rows else None
    once = add_image_attention(base.clone(), query, key, value, 8, Factor(mask, 0.7))
    base, query, key, value = (tensor.double() for tensor in (base, query, key, value))
    factor = Factor(None if mask is None else mask.double(), 0.7)
    # Double precision takes the other form, one call for all heads.
    other = add_image_attention(base, query, key, value, 8, factor)
    assert (once - other).abs().max() < 1e-5
