"""The judge of the maths on transformers: whole outputs against `diffusers`, same weights, fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models.transformer_adapters import xlabs
from support.models.transformers import TINY_CHROMA, TINY_FLUX, Geometry, Pair, build_pair
from support.references.transformers import (
    Case,
    model_output,
    pack_model,
    reference_output,
    xlabs_output,
)
from torch import Tensor

EMBED = 48
TOLERANCE = 1e-5  # of the largest number
_PAIR: dict[Geometry, Pair] = {}


def pair_of(geometry: Geometry) -> Pair:
    if geometry not in _PAIR:
        _PAIR[geometry] = build_pair(geometry)
    return _PAIR[geometry]


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.fixture
def core(host: Any) -> Any:
    return lambda name: host.module(f"ipadapter.{name}")


@pytest.fixture
def noted(record_property: Any) -> Callable[[str, float], float]:
    def note(name: str, error: float) -> float:
        record_property("measured", f"{'difference from diffusers: ' + name:<70} {error:.1e}")
        return error

    return note


SETUPS = {
    "one image": {},
    "three images (concat)": {"images": 3},
    "two chained adapters": {"adapters": 2},
    "16 tokens": {"tokens": 16},
    "a scale per block": {"ramp": True},
}


def xlabs_case(
    geometry: Geometry, images: int = 1, adapters: int = 1, tokens: int = 4, ramp: bool = False
) -> Case:
    weights: list[Any] = [0.8, 0.5][:adapters]
    if ramp:
        weights = [[0.3 + 0.6 * n / (geometry.double - 1) for n in range(geometry.double)]]
    seeds = range(adapters)
    # diffusers takes 4 tokens unless there are as many rows as 16 of 4096 numbers
    return Case(
        [xlabs(geometry, EMBED, tokens, seed=3 + s) for s in seeds],
        weights,
        [seeded(20 + s, images, EMBED) for s in seeds],
        [0.1 * seeded(40 + s, 1, EMBED) for s in seeds],
    )


@pytest.mark.parametrize("geometry", [TINY_FLUX, TINY_CHROMA], ids=lambda g: g.name)
def test_the_bases_are_the_same(host: Any, noted: Any, geometry: Geometry) -> None:
    pair = pair_of(geometry)
    error = difference(model_output(pair, pair.model), reference_output(pair))
    assert noted(f"{geometry.name}, no adapter", error) < TOLERANCE


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("geometry", [TINY_FLUX, TINY_CHROMA], ids=lambda g: g.name)
def test_xlabs_equals_diffusers(core: Any, noted: Any, geometry: Geometry, setup: str) -> None:
    pair, case = pair_of(geometry), xlabs_case(geometry, **SETUPS[setup])
    ours = model_output(pair, pack_model(pair, case, core))
    error = difference(ours, xlabs_output(pair, case))
    assert difference(ours, model_output(pair, pair.model)) > 0.05
    assert noted(f"{geometry.name}, XLabs, {setup}", error) < TOLERANCE
