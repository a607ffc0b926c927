"""When an adapter acts: a range of the sampling, in percent for people and in
sigma for the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Problem


@dataclass(frozen=True)
class SigmaRange:
    """Noise levels at which an adapter acts: `end <= sigma <= start`, both inclusive."""

    start: float = math.inf
    end: float = 0.0

    @property
    def always(self) -> bool:
        """True if no sigma of a sampling lies outside: the sigma then need not be
        read from the device."""
        return self.end <= 0.0 and self.start >= 1e6

    def contains(self, sigma: float | None) -> bool:
        """True if the adapter acts at `sigma`; an unknown sigma (`None`) counts as inside."""
        return sigma is None or self.end <= sigma <= self.start


ALWAYS = SigmaRange()


def sigma_range(
    start_at: float, end_at: float, percent_to_sigma: Callable[[float], float]
) -> SigmaRange:
    """Convert the widgets `start_at` and `end_at` (0..1 of the sampling) by the
    model's own noise schedule."""
    for name, value in (("start_at", start_at), ("end_at", end_at)):
        if not 0.0 <= value <= 1.0:
            raise Problem.BAD_VALUE(
                f"{name} is {value}: expected a number from 0 (first step) to 1 (last step)."
            )
    if start_at > end_at:
        raise Problem.BAD_VALUE(
            f"start_at {start_at} lies after end_at {end_at}: the adapter would never act. Swap "
            "the two values."
        )
    return SigmaRange(float(percent_to_sigma(start_at)), float(percent_to_sigma(end_at)))
