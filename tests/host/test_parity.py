"""The judge of the maths: whole UNet outputs against `diffusers`, same weights, fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.hosts.applied import pack_model
from support.models.unets import (
    FULL_SD15,
    FULL_SDXL,
    TINY_SD15,
    TINY_SDXL,
    Geometry,
    Pair,
    build_pair,
    random_adapter,
)
from support.references.parity import Case, model_output, reference_output

EMBED = 48
TOLERANCE = {"tiny": 1e-5, "full": 2e-4}
_PAIR: dict[Geometry, Pair] = {}


def pair_of(geometry: Geometry) -> Pair:
    """The pair of a geometry; only the last one is kept, as SDXL alone takes 10 GB."""
    if geometry not in _PAIR:
        _PAIR.clear()
        _PAIR[geometry] = build_pair(geometry)
    return _PAIR[geometry]


def features(plus: bool, images: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(images, 17, EMBED, generator=g)
        if plus
        else torch.randn(images, EMBED, generator=g)
    )


def case_of(
    geometry: Geometry,
    plus: bool,
    images: int = 1,
    adapters: int = 1,
    mask: torch.Tensor | None = None,
) -> Case:
    seeds = range(adapters)
    return Case(
        [random_adapter(geometry, plus=plus, embed_dim=EMBED, seed=3 + s) for s in seeds],
        [0.8, 0.5][:adapters],
        [features(plus, images, 20 + s) for s in seeds],
        [features(plus, 1, 40 + s) * 0.1 for s in seeds],
        mask,
    )


@pytest.fixture
def core(host: Any) -> Any:
    return lambda name: host.module(f"ipadapter.{name}")


@pytest.fixture
def compare(core: Any, record_property: Any) -> Callable[[Geometry, Case, str], float]:
    """Largest difference between the whole UNet outputs of both sides; noted for
    the test's report."""

    def largest(geometry: Geometry, case: Case, name: str) -> float:
        pair = pair_of(geometry)
        ours = model_output(pair, pack_model(pair, case, core))
        error = float((reference_output(pair, case) - ours).abs().max())
        subject = f"difference from diffusers: {geometry.name}, {name}"
        record_property("measured", f"{subject:<70} {error:.1e}")
        return error

    return largest


SETUPS = {
    "one image": {},
    "three images (concat)": {"images": 3},
    "two chained adapters": {"adapters": 2},
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("plus", [False, True], ids=["standard", "plus"])
@pytest.mark.parametrize("geometry", [TINY_SD15, TINY_SDXL], ids=lambda g: g.name)
def test_tiny_unet_equals_diffusers(
    compare: Any, geometry: Geometry, plus: bool, setup: str
) -> None:
    case = case_of(geometry, plus, **SETUPS[setup])
    name = f"{'Plus' if plus else 'standard'}, {setup}"
    assert compare(geometry, case, name) < TOLERANCE["tiny"]


def test_mask_equals_diffusers(compare: Any) -> None:
    mask = torch.zeros(1, 128, 128)
    mask[:, :64, 32:] = 1.0
    case = case_of(TINY_SD15, plus=False, mask=mask)
    assert compare(TINY_SD15, case, "standard, mask") < TOLERANCE["tiny"]


@pytest.mark.parametrize("geometry", [TINY_SD15, TINY_SDXL], ids=lambda g: g.name)
def test_a_dropped_middle_block_fails_the_gate(core: Any, geometry: Geometry) -> None:
    pair, case = pair_of(geometry), case_of(geometry, plus=False)
    model = pack_model(pair, case, core).clone()
    slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    for key in [key for key in slots if key[0] == "middle"]:
        del slots[key]
    error = float((reference_output(pair, case) - model_output(pair, model)).abs().max())
    assert error > 100 * TOLERANCE["tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("plus", [False, True], ids=["standard", "plus"])
@pytest.mark.parametrize("geometry", [FULL_SD15, FULL_SDXL], ids=lambda g: g.name)
def test_full_unet_equals_diffusers(
    compare: Any, geometry: Geometry, plus: bool, setup: str
) -> None:
    case = case_of(geometry, plus, **SETUPS[setup])
    name = f"{'Plus' if plus else 'standard'}, {setup}"
    assert compare(geometry, case, name) < TOLERANCE["full"]
