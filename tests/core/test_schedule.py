"""When an adapter acts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipadapter.attention.sigmas import ALWAYS, SigmaRange, sigma_range


def sigma_at(percent: float) -> float:
    """As the host's: everything before the first and after the last step lies outside."""
    if percent <= 0.0:
        return 999999999.9
    return 0.0 if percent >= 1.0 else 14.6 * (1.0 - percent)


def test_the_whole_sampling_needs_no_sigma() -> None:
    assert ALWAYS.always
    assert sigma_range(0.0, 1.0, sigma_at).always
    assert not sigma_range(0.0, 0.999, sigma_at).always
    assert not sigma_range(0.001, 1.0, sigma_at).always


@pytest.mark.parametrize("sigma", [0.0, 0.03, 14.6, 1e9, None])
def test_always_contains_everything(sigma: float | None) -> None:
    assert ALWAYS.contains(sigma)


def test_both_ends_belong_to_the_range() -> None:
    span = SigmaRange(10.0, 2.0)
    assert span.contains(10.0) and span.contains(2.0) and span.contains(5.0)
    assert not span.contains(math.nextafter(10.0, 11)) and not span.contains(1.999)


def test_an_unknown_noise_level_counts_as_inside() -> None:
    assert SigmaRange(1.0, 0.5).contains(None)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_percent_and_sigma_agree(start: float, end: float, now: float) -> None:
    start, end = min(start, end), max(start, end)
    span = sigma_range(start, end, sigma_at)
    inside = sigma_at(end) <= sigma_at(now) <= sigma_at(start)
    assert span.contains(sigma_at(now)) is inside


def test_two_halves_cover_every_step_and_share_only_the_border() -> None:
    first, second = sigma_range(0.0, 0.5, sigma_at), sigma_range(0.5, 1.0, sigma_at)
    for step in range(21):
        sigma = sigma_at(step / 20)
        assert first.contains(sigma) or second.contains(sigma)
        assert (first.contains(sigma) and second.contains(sigma)) is (step == 10)


@pytest.mark.parametrize(
    ("start", "end", "named"),
    [(-0.1, 1.0, "start_at"), (0.0, 1.5, "end_at"), (2.0, 3.0, "start_at")],
)
def test_values_that_are_no_fractions_are_refused(start: float, end: float, named: str) -> None:
    with pytest.raises(ValueError, match=rf"{named} is .*expected a number from 0"):
        sigma_range(start, end, sigma_at)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="start_at is nan"):
        sigma_range(math.nan, 1.0, sigma_at)


def test_a_start_after_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start_at 0\.8 lies after end_at 0\.2.*Swap the two"):
        sigma_range(0.8, 0.2, sigma_at)
