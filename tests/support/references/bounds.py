"""Time and memory that a test case may take, and how many cases there are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipadapter.errors import plain_text

FUZZ = "IMAGE_PROMPT_FUZZ"  # how many times as many cases as usual
STATUS = Path("/proc/self/status")
MEASURES_MEMORY = STATUS.exists()


def cases(usual: int) -> int:
    """How many cases a property test draws."""
    return usual * int(os.environ.get(FUZZ, "1"))


def peak() -> tuple[int, int]:
    """Bytes this process holds, and the most it has held since `forget_peak`."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    now, most = (int(lines[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
    return now, most


def forget_peak() -> None:
    """Let the most that was held be what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


class Bound:
    """Counts cases, keeps the worst of them, and fails for one that takes too much."""

    def __init__(self, seconds: float) -> None:
        """seconds: of processor time per case."""
        self.seconds = seconds
        self.cases = self.refused = self.most = 0
        self.slowest = self.total = 0.0

    @contextmanager
    def case(self, what: str, most: int) -> Iterator[None]:
        """One case, which may take `most` bytes. A ValueError is a refusal, and fine."""
        before, started = 0, time.process_time()
        if MEASURES_MEMORY:
            forget_peak()
            before = peak()[0]
        try:
            yield
        except ValueError as error:
            self.refused += 1
            if plain_text(error) == str(error):  # what a library says of input that nobody checked
                raise AssertionError(f"{what}: {error}") from error
        seconds = time.process_time() - started
        held = peak()[1] - before if MEASURES_MEMORY else 0
        self.cases += 1
        self.total += seconds
        self.slowest, self.most = max(seconds, self.slowest), max(held, self.most)
        assert seconds < self.seconds, f"{what}: {seconds:.1f} s"
        assert held < most, f"{what}: {held >> 20} MB"

    def __str__(self) -> str:
        return (
            f"{self.cases} cases in {self.total:.0f} s, {self.refused} refused; "
            f"slowest {self.slowest:.2f} s, largest {self.most / (1 << 20):.0f} MB"
        )
