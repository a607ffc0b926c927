"""What is added in a transformer's block, row by row, against naive attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.references.naive import attention
from torch import Tensor, nn

from ipadapter.attention.folding import KeyValue, LayerKeyValue, Norms
from ipadapter.attention.injection import Injection, LayerOverTime, Place
from ipadapter.attention.joined import Attended
from ipadapter.attention.rows import CallState
from ipadapter.attention.terms import Foreseen, Term
from ipadapter.attention.transformer_patch import (
    BlockPatch,
    ReadyBlock,
    Sight,
    spread_mask,
    unroped,
)

HEADS, DIM, TEXT, GRID = 2, 8, 3, (2, 4)
WIDTH, PIXELS, OTHERS = HEADS * DIM, 8, 2  # OTHERS: rows of a reference picture
LENGTH = TEXT + PIXELS + OTHERS
MASK = torch.tensor([[[1.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.5]]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sight(text: int = TEXT) -> Sight:
    return Sight(HEADS, text, GRID, ("input", 0), (2, 4, 2 * GRID[0], 2 * GRID[1]))


def pair(seed: int, tokens: int = 5, items: int = 1) -> KeyValue:
    return KeyValue(*(random(items, tokens, WIDTH, seed=seed + part) for part in range(2)))


def call(rows: int = 2) -> CallState:
    """Rows of uncond, then as many of cond."""
    return CallState((False, True), tuple(range(rows // 2)), batch=rows)


def foreseen(rows: int, dtype: torch.dtype = torch.float32) -> Foreseen:
    return Foreseen(rows, torch.device("cpu"), dtype, [GRID])


def ready(patch: BlockPatch, rows: int = 2) -> ReadyBlock:
    return patch.ready(call(rows), foreseen(rows))


def joined(patch: BlockPatch, base: Tensor, given: Attended, norms: Norms) -> Tensor:
    """The picture's rows with the terms that share a softmax with their own keys."""
    rows = len(base)
    made = patch.ready(call(rows), foreseen(rows, base.dtype), norms)
    made.add_joined_(base, given, sight(0))
    return base


def test_a_mask_has_its_mean_over_the_text_and_nothing_over_other_pictures() -> None:
    injection = Injection(LayerKeyValue(pair(1), pair(3)), mask=MASK)
    term = Term.ready(injection, call(), foreseen(2))
    spread = spread_mask(term, random(2, LENGTH, WIDTH), sight(), call())
    assert spread is not None and spread.shape == (1, LENGTH, 1)
    text, grid, rest = spread[0, :, 0].split((TEXT, PIXELS, OTHERS))
    assert torch.allclose(text, MASK.mean().expand(TEXT))
    assert torch.equal(grid, MASK.flatten()) and not rest.any()


def test_two_masks_that_make_up_the_picture_make_up_every_row() -> None:
    layer = LayerKeyValue(pair(1), pair(3))
    query, base = random(2, LENGTH, WIDTH), torch.zeros(2, LENGTH, WIDTH)
    halves = [Injection(layer, mask=mask, place=Place.IN_ATTENTION) for mask in (MASK, 1 - MASK)]
    whole = BlockPatch((Injection(layer, place=Place.IN_ATTENTION),))

    def added(patch: BlockPatch) -> Tensor:
        return ready(patch).added_inside(base.clone(), query, sight())

    inside = slice(TEXT + PIXELS)  # other pictures belong to neither half
    one, both = added(whole), added(BlockPatch(tuple(halves)))
    assert torch.allclose(both[:, inside], one[:, inside], atol=1e-6)
    assert not both[:, inside.stop :].any()


@pytest.mark.parametrize("place", [Place.AFTER_BLOCK, Place.IN_ATTENTION])
def test_a_term_of_another_place_is_left_to_it(place: Place) -> None:
    patch = ready(BlockPatch((Injection(LayerKeyValue(pair(1), pair(3)), place=place),)))
    base, query = random(2, LENGTH, WIDTH), random(2, LENGTH, WIDTH)
    inside, after = patch.added_inside, patch.added_after
    left, taken = (inside, after) if place is Place.AFTER_BLOCK else (after, inside)
    assert left(base, query, sight()) is base
    assert not torch.equal(taken(base.clone(), query, sight()), base)


def over_time(weights: Sequence[float], cond: KeyValue, uncond: KeyValue, norms: Norms) -> Any:
    made = LayerKeyValue(cond, uncond)
    layer = LayerOverTime(lambda _call: (made,), nn.Identity(), 0, tuple(weights), norms)
    return Injection(layer, place=Place.JOINED, mask=MASK)


def normalised(tensor: Tensor, weight: Tensor) -> Tensor:
    by_head = tensor.unflatten(-1, (HEADS, DIM))
    return (by_head / by_head.square().mean(-1, keepdim=True).sqrt() * weight).flatten(-2)


@pytest.mark.parametrize("weights", [(0.7,), (0.7, -0.4)], ids=["one weight", "one per latent"])
@pytest.mark.parametrize("tokens", [5, 3], ids=["equal", "fewer tokens for uncond"])
def test_joined_rows_equal_naive_attention(weights: tuple[float, ...], tokens: int) -> None:
    raw = [random(4, PIXELS, WIDTH, seed=20 + part) for part in range(3)]
    block, own = (Norms(*(1 + 0.3 * random(2, DIM, seed=seed))) for seed in (30, 31))
    cond, uncond = pair(1), pair(3, tokens)
    given = Attended(normalised(raw[0], block.query), normalised(raw[1], block.key), raw[2])
    base = random(4, PIXELS, WIDTH, seed=40)
    patch = BlockPatch((over_time(weights, cond, uncond, own),))
    out = joined(patch, base.clone(), given, block)
    query, key = normalised(raw[0], own.query), normalised(raw[1], own.key)
    for row in range(4):
        chosen = cond if row >= 2 else uncond
        keys = torch.cat([key[row], chosen.key[0]])
        values = torch.cat([raw[2][row], chosen.value[0]])
        term = attention(query[row], keys, values, HEADS) * MASK.reshape(-1, 1)
        expected = base[row] + weights[min(row % 2, len(weights) - 1)] * term
        assert (out[row] - expected).abs().max() < 1e-5


def test_half_precision_stays_close_and_norms_are_compared_in_full() -> None:
    raw = [random(2, PIXELS, WIDTH, seed=20 + part) for part in range(3)]
    block, own = (Norms(*(1 + 0.3 * random(2, DIM, seed=seed))) for seed in (30, 31))
    patch = BlockPatch((over_time((0.7,), pair(1), pair(3), own),))

    def out(dtype: torch.dtype) -> Tensor:
        given = Attended(*(part.to(dtype) for part in raw))
        norms = Norms(block.query.to(dtype), block.key.to(dtype))
        base = torch.zeros(2, PIXELS, WIDTH, dtype=dtype)
        return joined(patch, base, given, norms)

    exact, half = out(torch.float32), out(torch.bfloat16)
    assert half.dtype is torch.bfloat16
    assert (half.float() - exact).norm() < 0.02 * exact.norm()


def test_a_channel_that_the_block_silences_stays_silent() -> None:
    block, own = Norms(torch.ones(DIM), torch.ones(DIM)), Norms(torch.ones(DIM), torch.ones(DIM))
    block.query[0] = 0.0
    query = normalised(random(2, PIXELS, WIDTH), block.query)
    given = Attended(query, random(2, PIXELS, WIDTH, seed=1), random(2, PIXELS, WIDTH, seed=2))
    patch = BlockPatch((over_time((1.0,), pair(1), pair(3), own),))
    out = joined(patch, torch.zeros(2, PIXELS, WIDTH), given, block)
    assert torch.isfinite(out).all()


def test_a_rotation_is_turned_back() -> None:
    angles = random(1, 1, LENGTH, DIM // 2)
    rows = [angles.cos(), -angles.sin(), angles.sin(), angles.cos()]
    rotation = torch.stack(rows, dim=-1).unflatten(-1, (2, 2))
    query = random(2, HEADS, LENGTH, DIM)
    pairs = query.unflatten(-1, (-1, 1, 2))
    turned = (rotation[..., 0] * pairs[..., 0] + rotation[..., 1] * pairs[..., 1]).flatten(-2)
    assert not torch.allclose(turned, query, atol=1e-2)
    assert torch.allclose(unroped(turned, rotation), query, atol=1e-6)
