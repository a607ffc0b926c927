"""When an adapter acts: a range of the sampling, in percent for people and in sigma
for the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Problem

# Samplers keep noise levels in single precision, the ends of a range come in double: what differs
# by less than some units in the last place is one and the same step.
_SAME = 1e-6


@dataclass(frozen=True)
class SigmaRange:
    """Noise levels at which an adapter acts: `end < sigma <= start`.

    Half-open, so that of two ranges that meet on a step exactly one acts there, the later one.
    """

    start: float = math.inf
    end: float = -math.inf

    @property
    def always(self) -> bool:
        """True if no sigma lies outside: the sigma then need not be read from the device."""
        return self.start == math.inf and self.end == -math.inf

    def contains(self, sigma: float | None) -> bool:
        """True if the adapter acts at `sigma`; an unknown sigma (`None`) counts as inside."""
        if sigma is None:
            return True
        tolerance = abs(sigma) * _SAME
        return self.end + tolerance < sigma <= self.start + tolerance


ALWAYS = SigmaRange()


@dataclass(frozen=True)
class PercentRange:
    """The widgets `start_at` and `end_at`: 0 (first step) to 1 (after the last), of whatever noise
    schedule samples. The ends 0 and 1 are open: no step lies before or after them."""

    start_at: float = 0.0
    end_at: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no fraction, and ranges that end before they begin."""
        for name, value in (("start_at", self.start_at), ("end_at", self.end_at)):
            if not 0.0 <= value <= 1.0:
                raise Problem.BAD_VALUE(
                    f"{name} is {value}: expected a number from 0 (first step) to 1 (last step)."
                )
        if self.start_at > self.end_at:
            raise Problem.BAD_VALUE(
                f"start_at {self.start_at} lies after end_at {self.end_at}: the adapter would "
                "never act. Swap the two values."
            )

    @property
    def always(self) -> bool:
        """True if it leaves out no step of any schedule."""
        return self.start_at == 0.0 and self.end_at == 1.0

    @property
    def never(self) -> bool:
        """True if no step lies inside."""
        return self.start_at == self.end_at

    def resolved(self, percent_to_sigma: Callable[[float], float]) -> SigmaRange:
        """The noise levels of this range in a schedule."""
        if self.never:
            return SigmaRange(-math.inf, math.inf)
        start = math.inf if self.start_at == 0.0 else float(percent_to_sigma(self.start_at))
        end = -math.inf if self.end_at == 1.0 else float(percent_to_sigma(self.end_at))
        return SigmaRange(start, end)


WHOLE_RUN = PercentRange()
