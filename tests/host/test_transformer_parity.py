"""The judge of the maths on transformers: whole outputs against `diffusers`, same weights, fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.hosts.applied import pack_model
from support.models.transformer_adapters import instantx, sd3, xlabs
from support.models.transformers import (
    TINY_CHROMA,
    TINY_FLUX,
    TINY_SD3,
    WIDE_FLUX,
    WIDE_SD3,
    Geometry,
    Pair,
    build_pair,
)
from support.references.naive_flux import naive_output
from support.references.transformers import (
    Case,
    model_output,
    reference_output,
    sd3_output,
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
    "a scale per block": {"ramp": True},
}


def xlabs_case(
    geometry: Geometry,
    images: int = 1,
    adapters: int = 1,
    ramp: bool = False,
    mask: Tensor | None = None,
) -> Case:
    weights: list[Any] = [0.8, 0.5][:adapters]
    if ramp:
        weights = [[0.3 + 0.6 * n / (geometry.double - 1) for n in range(geometry.double)]]
    seeds = range(adapters)
    return Case(
        [xlabs(geometry, EMBED, seed=3 + s) for s in seeds],
        weights,
        [seeded(20 + s, images, EMBED) for s in seeds],
        [0.1 * seeded(40 + s, 1, EMBED) for s in seeds],
        mask,
    )


@pytest.mark.parametrize("geometry", [TINY_FLUX, TINY_CHROMA, TINY_SD3], ids=lambda g: g.name)
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


def test_beside_a_controlnet_xlabs_equals_diffusers(core: Any, noted: Any) -> None:
    """The ControlNet's residuals come after the adapter's, into every block."""
    geometry = TINY_FLUX
    pair, case = pair_of(geometry), xlabs_case(geometry)
    control = [seeded(60 + n, 2, 24, geometry.width) for n in range(geometry.blocks)]
    model = pack_model(pair, case, core)
    ours = model_output(pair, model, control)
    error = difference(ours, xlabs_output(pair, case, control))
    assert difference(ours, model_output(pair, model)) > 0.05
    assert difference(ours, model_output(pair, pair.model, control)) > 0.05
    assert noted(f"{geometry.name}, XLabs beside a ControlNet", error) < TOLERANCE


def instantx_case(
    geometry: Geometry, images: int = 1, adapters: int = 1, mask: Tensor | None = None
) -> Case:
    case = xlabs_case(geometry, images, adapters, mask=mask)
    states = [instantx(geometry, EMBED, seed=6 + number) for number in range(adapters)]
    return replace(case, adapters=states)


INSTANTX = {name: setup for name, setup in SETUPS.items() if "ramp" not in setup}


@pytest.mark.parametrize("setup", INSTANTX)
@pytest.mark.parametrize("geometry", [TINY_FLUX, TINY_CHROMA], ids=lambda g: g.name)
def test_instantx_equals_its_published_maths(
    core: Any, noted: Any, geometry: Geometry, setup: str
) -> None:
    pair, case = pair_of(geometry), instantx_case(geometry, **INSTANTX[setup])
    ours = model_output(pair, pack_model(pair, case, core))
    error = difference(ours, naive_output(pair, case))
    assert difference(ours, model_output(pair, pair.model)) > 0.05
    assert noted(f"{geometry.name}, InstantX, {setup}", error) < TOLERANCE


MASK = torch.zeros(1, 64, 96)
MASK[:, 10:40, 24:] = 1.0


@pytest.mark.parametrize("case_of", [xlabs_case, instantx_case])
def test_a_mask_equals_the_plain_maths(core: Any, noted: Any, case_of: Any) -> None:
    pair, case = pair_of(TINY_FLUX), case_of(TINY_FLUX, mask=MASK)
    ours = model_output(pair, pack_model(pair, case, core))
    whole = model_output(pair, pack_model(pair, replace(case, mask=None), core))
    assert difference(ours, whole) > 0.01
    error = difference(ours, naive_output(pair, case))
    assert noted(f"{case_of.__name__}, mask", error) < TOLERANCE


def test_both_kinds_in_one_model_add_up(core: Any, noted: Any) -> None:
    pair, one, other = pair_of(TINY_FLUX), xlabs_case(TINY_FLUX), instantx_case(TINY_FLUX)
    case = Case(
        [*one.adapters, *other.adapters],
        [*one.weights, *other.weights],
        [*one.cond, *other.cond],
        [*one.uncond, *other.uncond],
    )
    error = difference(model_output(pair, pack_model(pair, case, core)), naive_output(pair, case))
    assert noted("XLabs and InstantX together", error) < TOLERANCE


def moved(model: Any, core: Any, place: str) -> Any:
    """A clone whose terms are added at another place."""
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    key = core("host.sampling").CARRIER_KEY
    wanted = core("attention.injection").Place[place]
    placed = {
        layer: replace(patch, injections=tuple(replace(i, place=wanted) for i in patch.injections))
        for layer, patch in options[key].placed.items()
    }
    clone.model_options["transformer_options"] = {
        **options,
        key: replace(options[key], placed=placed),
    }
    return clone


def test_a_gate_on_xlabs_fails_the_judge(core: Any) -> None:
    pair, case = pair_of(TINY_FLUX), xlabs_case(TINY_FLUX)
    wrong = model_output(pair, moved(pack_model(pair, case, core), core, "IN_ATTENTION"))
    assert difference(wrong, xlabs_output(pair, case)) > 1000 * TOLERANCE


def test_instantx_without_the_gate_fails_the_judge(core: Any) -> None:
    pair, case = pair_of(TINY_FLUX), instantx_case(TINY_FLUX)
    wrong = model_output(pair, moved(pack_model(pair, case, core), core, "AFTER_BLOCK"))
    assert difference(wrong, naive_output(pair, case)) > 1000 * TOLERANCE


@pytest.mark.parametrize("case_of", [xlabs_case, instantx_case])
def test_a_rotated_query_fails_the_judge(
    core: Any, case_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, case, flux = pair_of(TINY_FLUX), case_of(TINY_FLUX), core("host.bases.flux")
    model = pack_model(pair, case, core)
    monkeypatch.setattr(flux, "unroped", lambda query, _rotation: query)
    monkeypatch.setattr(flux, "_TELLS", False)
    wrong = model_output(pair, model)
    assert difference(wrong, naive_output(pair, case)) > 1000 * TOLERANCE


@pytest.mark.parametrize("case_of", [xlabs_case, instantx_case])
def test_the_older_hosts_way_is_the_same(
    core: Any, case_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, case = pair_of(TINY_FLUX), case_of(TINY_FLUX)
    monkeypatch.setattr(core("host.bases.flux"), "_TELLS", False)
    ours = model_output(pair, pack_model(pair, case, core))
    assert difference(ours, naive_output(pair, case)) < TOLERANCE


def sd3_case(geometry: Geometry, weight: Any = 0.7, images: int = 1, **size: int) -> Case:
    cond, uncond = seeded(20, images, 5, EMBED), torch.zeros(1, 5, EMBED)
    return Case([sd3(geometry, EMBED, **size)], [weight], [cond], [uncond])


SD3_SETUPS = {
    "one image": {},
    "three images (concat)": {"images": 3},
    "a scale per block": {"weight": [0.3, 0.9, 0.5]},
}


@pytest.mark.parametrize("setup", SD3_SETUPS)
def test_sd3_equals_diffusers(core: Any, noted: Any, setup: str) -> None:
    pair, case = pair_of(TINY_SD3), sd3_case(TINY_SD3, **SD3_SETUPS[setup])
    ours = model_output(pair, pack_model(pair, case, core))
    assert difference(ours, model_output(pair, pair.model)) > 0.05
    error = difference(ours, sd3_output(pair, case))
    assert noted(f"{TINY_SD3.name}, InstantX, {setup}", error) < TOLERANCE


def test_a_block_of_sd3_at_its_real_width(core: Any, noted: Any) -> None:
    pair, case = build_pair(WIDE_SD3), sd3_case(WIDE_SD3, tokens=64)
    ours = model_output(pair, pack_model(pair, case, core))
    assert difference(ours, model_output(pair, pair.model)) > 0.01
    assert noted(f"{WIDE_SD3.name}, InstantX", difference(ours, sd3_output(pair, case))) < 2e-4


@pytest.mark.slow
def test_blocks_of_flux_at_their_real_width(core: Any, noted: Any) -> None:
    pair, case = build_pair(WIDE_FLUX), xlabs_case(WIDE_FLUX)
    ours = model_output(pair, pack_model(pair, case, core))
    assert difference(ours, model_output(pair, pair.model)) > 0.01
    assert noted(f"{WIDE_FLUX.name}, XLabs", difference(ours, xlabs_output(pair, case))) < 2e-4


def test_a_mask_on_sd3_equals_the_reference_with_a_scale_per_position(
    core: Any, noted: Any
) -> None:
    pair, case = pair_of(TINY_SD3), replace(sd3_case(TINY_SD3), mask=MASK)
    ours = model_output(pair, pack_model(pair, case, core))
    whole = model_output(pair, pack_model(pair, replace(case, mask=None), core))
    assert difference(ours, whole) > 0.01
    assert noted(f"{TINY_SD3.name}, mask", difference(ours, sd3_output(pair, case))) < TOLERANCE


def test_the_blocks_own_norm_left_in_fails_the_judge(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What normalises twice: the published port did."""
    pair, case = pair_of(TINY_SD3), sd3_case(TINY_SD3)
    none = core("attention.folding").Norms(*torch.ones(2, TINY_SD3.head_dim))
    monkeypatch.setattr(core("host.bases.sd3"), "_norms", lambda _network, _layer: none)
    wrong = model_output(pair, pack_model(pair, case, core))
    assert difference(wrong, sd3_output(pair, case)) > 1000 * TOLERANCE
