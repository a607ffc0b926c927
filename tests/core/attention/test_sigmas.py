"""When an adapter acts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter.attention.sigmas import ALWAYS, PercentRange, SigmaRange


def sigma_at(percent: float) -> float:
    """As the host's: everything before the first and after the last step lies outside."""
    if percent <= 0.0:
        return 999999999.9
    return 0.0 if percent >= 1.0 else 14.6 * (1.0 - percent)


def of(start: float, end: float) -> SigmaRange:
    return PercentRange(start, end).resolved(sigma_at)


def single(value: float) -> float:
    """As a sampler has it, in single precision."""
    return float(torch.tensor(value, dtype=torch.float32))


def test_the_whole_sampling_needs_no_sigma() -> None:
    assert ALWAYS.always
    assert of(0.0, 1.0).always
    assert not of(0.0, 0.999).always
    assert not of(0.001, 1.0).always


@pytest.mark.parametrize("sigma", [0.0, 0.03, 14.6, 1e9, None])
def test_always_contains_everything(sigma: float | None) -> None:
    assert ALWAYS.contains(sigma)


def test_the_start_belongs_to_the_range_and_the_end_to_the_next() -> None:
    span = SigmaRange(10.0, 2.0)
    assert span.contains(10.0) and span.contains(5.0) and span.contains(2.001)
    assert not span.contains(2.0) and not span.contains(1.999) and not span.contains(10.001)


@pytest.mark.parametrize("sigma", [10.0, 2.0, 0.7, 1.0, 3e-4])
def test_a_noise_level_is_the_same_in_single_and_double_precision(sigma: float) -> None:
    for near in (single(sigma), math.nextafter(sigma, 99), math.nextafter(sigma, 0), sigma):
        assert SigmaRange(sigma, 0.0).contains(near)
        assert not SigmaRange(99.0, sigma).contains(near)


@pytest.mark.parametrize("first_step", [1.0000001, 1.0, 0.99999994, 14.7, 80.0])
def test_start_0_and_end_1_leave_out_no_step(first_step: float) -> None:
    """A flow schedule's first sigma may lie above what its `percent_to_sigma(0)` gives."""
    flow = lambda percent: 1.0 - percent  # noqa: E731
    assert PercentRange(0.0, 0.5).resolved(flow).contains(first_step)
    assert PercentRange(0.0, 1.0).resolved(flow).contains(0.0)
    assert PercentRange(0.5, 1.0).resolved(flow).contains(-1e-9)


@pytest.mark.parametrize("at", [0.0, 0.3, 1.0])
def test_an_empty_range_never_acts(at: float) -> None:
    assert PercentRange(at, at).never
    assert not any(of(at, at).contains(sigma_at(step / 20)) for step in range(21))


def test_an_unknown_noise_level_counts_as_inside() -> None:
    assert SigmaRange(1.0, 0.5).contains(None)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_percent_and_sigma_agree(start: float, end: float, now: float) -> None:
    start, end = min(start, end), max(start, end)
    span = of(start, end)
    after_start = start == 0.0 or sigma_at(now) <= sigma_at(start) * (1 + 1e-6)
    before_end = end == 1.0 or sigma_at(end) < sigma_at(now) * (1 - 1e-6)
    assert span.contains(sigma_at(now)) is (start < end and after_start and before_end)


@pytest.mark.parametrize("parts", [2, 3, 4, 5])
@pytest.mark.parametrize("steps", [1, 4, 20, 30])
def test_ranges_that_meet_cover_every_step_once(parts: int, steps: int) -> None:
    spans = [of(part / parts, (part + 1) / parts) for part in range(parts)]
    for step in range(steps + 1):
        acting = [span.contains(single(sigma_at(step / steps))) for span in spans]
        assert sum(acting) == 1


@pytest.mark.parametrize(
    ("start", "end", "named"),
    [(-0.1, 1.0, "start_at"), (0.0, 1.5, "end_at"), (2.0, 3.0, "start_at")],
)
def test_values_that_are_no_fractions_are_refused(start: float, end: float, named: str) -> None:
    with pytest.raises(ValueError, match=rf"{named} is .*expected a number from 0"):
        of(start, end)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="start_at is nan"):
        of(math.nan, 1.0)


def test_a_start_after_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start_at 0\.8 lies after end_at 0\.2.*Swap the two"):
        of(0.8, 0.2)
