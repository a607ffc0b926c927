"""A block's share under torch.compile: one graph without a break, whatever changes between calls.

The backend runs what was traced, so that no compiler is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ipadapter.attention.attn2_patch import AttentionPatch
from ipadapter.attention.folding import KeyValue, LayerKeyValue, Norms
from ipadapter.attention.injection import Injection, LayerOverTime, Place
from ipadapter.attention.joined import Attended
from ipadapter.attention.rows import CallState
from ipadapter.attention.sigmas import SigmaRange
from ipadapter.attention.terms import Foreseen
from ipadapter.attention.transformer_patch import BlockPatch, Sight

WIDTH, HEADS, GRID, TEXT, TOKENS = 16, 2, (4, 6), 3, 5
PIXELS = GRID[0] * GRID[1]
FORESEEN = Foreseen(2, torch.device("cpu"), torch.float32, [GRID])
LEFT = torch.zeros(1, *GRID)
LEFT[:, :, :3] = 1.0

Change = Callable[[int], dict[str, Any]]  # fields of an Injection in the n-th call
CHANGES: dict[str, Change] = {
    "prompts": lambda number: {"layer": layer(number)},
    "weights": lambda number: {"layer": layer(0, weight=0.5 + number)},
    "strengths": lambda number: {"strength": 0.3 + number},
    "ranges": lambda number: {"sigmas": SigmaRange(start=5.0 - number)},
    "masks": lambda number: {"mask": LEFT.roll(number, -1)},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(seed: int, weight: float = 1.0) -> LayerKeyValue:
    key, value = (random(1, TOKENS, WIDTH, seed=10 * seed + part) for part in (1, 2))
    return LayerKeyValue(KeyValue(key, weight * value), KeyValue(value, key))


def call(number: int) -> CallState:
    """The n-th call, at noise levels around the ends of ranges."""
    return CallState((False, True), (0,), 2, torch.full((2,), 4.5 - number), fresh=True)


@pytest.fixture
def graphs() -> Iterator[list[Any]]:
    """The graphs that are made: one for all calls."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def compiled(function: Callable[..., Tensor], graphs: list[Any]) -> Callable[..., Tensor]:
    def backend(module: Any, _examples: Any) -> Any:
        graphs.append(module)
        return module.forward

    return torch.compile(function, backend=backend, fullgraph=True)


def text(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Tensor:
    return query * 0.5 + 1.0


@pytest.mark.parametrize("change", CHANGES)
def test_a_slot_is_one_graph(graphs: list[Any], change: str) -> None:
    def block(query: Tensor, slots: Any, extra: Any) -> Tensor:
        return slots["slot"](query, query, query, extra)

    run = compiled(block, graphs)
    for number in range(3):
        one = Injection(**{"layer": layer(0), **CHANGES[change](number)})
        slots = {"slot": AttentionPatch(text, [one, Injection(layer(7))])}
        made = {"slot": slots["slot"].ready(call(number), FORESEEN)}
        query, extra = random(2, PIXELS, WIDTH, seed=number), {"n_heads": HEADS, "step": number}
        expected = block(query, made, extra)
        plain = {**extra, "activations_shape": GRID, "ip_adapter_call": call(number)}
        assert torch.equal(block(query, slots, plain), expected)
        assert (run(query, made, extra) - expected).abs().max() < 1e-5
    assert len(graphs) == 1


@pytest.mark.parametrize("change", CHANGES)
def test_a_transformers_block_is_one_graph(graphs: list[Any], change: str) -> None:
    sight = Sight(HEADS, TEXT, GRID, ("input", 0), (2, 4, 2 * GRID[0], 2 * GRID[1]))

    def block(query: Tensor, ready: Any) -> Tensor:
        inside = ready.added_inside(query * 0.5, query, sight)
        return ready.added_after(inside * 2.0, query, sight)

    run = compiled(block, graphs)
    for number in range(3):
        fields = {"layer": layer(0), **CHANGES[change](number)}
        places = (Place.IN_ATTENTION, Place.AFTER_BLOCK)
        patch = BlockPatch(tuple(Injection(**fields, place=place) for place in places))
        ready = patch.ready(call(number), FORESEEN)
        query = random(2, TEXT + PIXELS, WIDTH, seed=number)
        assert (run(query, ready) - block(query, ready)).abs().max() < 1e-5
    assert len(graphs) == 1


def test_a_joined_softmax_is_one_graph(graphs: list[Any]) -> None:
    """Prompts, weights and masks; ranges are two graphs, for what is spared outside of them."""
    norms = [Norms(*(1 + 0.3 * random(2, WIDTH // HEADS, seed=seed))) for seed in (1, 2)]
    sight = Sight(HEADS, 0, GRID, ("input", 0), (2, 4, 2 * GRID[0], 2 * GRID[1]))

    def block(base: Tensor, given: Attended, ready: Any) -> Tensor:
        base = base * 1.0
        ready.add_joined_(base, given, sight)
        return base

    run = compiled(block, graphs)
    for number in range(3):
        made = (layer(number),)
        over_time = LayerOverTime(
            lambda _call, made=made: made, nn.Identity(), 0, (0.4 + number,), norms[0]
        )
        mask = LEFT.roll(number, -1) if number else LEFT
        one = Injection(over_time, place=Place.JOINED, mask=mask, strength=1.0 + number)
        ready = BlockPatch((one,)).ready(call(number), FORESEEN, norms[1])
        tensors = (random(2, PIXELS, WIDTH, seed=number + part) for part in range(4))
        base, *given = tensors
        expected = block(base, Attended(*given), ready)
        assert (run(base, Attended(*given), ready) - expected).abs().max() < 1e-5
    assert len(graphs) == 1
