"""What a soak has seen: memory over prompts, what was alive, and what was wrong; and a drawing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

COLOURS = ("#0060c0", "#c05000")
SIZE, EDGE = (900, 420), 55


def slope(values: Sequence[float]) -> float:
    """Rise per entry: a median over distant pairs, which single jumps do not move."""
    kept = list(enumerate(values))
    pairs = [(b - a) / (j - i) for i, a in kept for j, b in kept[i + 1 :] if j - i > len(kept) // 4]
    return statistics.median(pairs) if pairs else 0.0


@dataclass
class Report:
    """What one server did.

    memory: KB resident after each prompt. census: what was alive after some of them, by prompt.
    patches: for each way of applying, every different set of patches that its MODELs had.
    interrupted: what interrupts hit. files: saved ones that were read again.
    """

    memory: list[float] = field(default_factory=list)
    census: dict[int, dict[str, int]] = field(default_factory=dict)
    patches: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    interrupted: dict[str, int] = field(default_factory=dict)
    files: int = 0
    seconds: float = 0.0

    @property
    def settled(self) -> list[float]:
        """Memory without the first quarter, the warm-up."""
        return self.memory[len(self.memory) // 4 :]

    @property
    def slope(self) -> float:
        """KB per prompt after warm-up."""
        return slope(self.settled)

    @property
    def growth(self) -> float:
        """KB from the end of the warm-up to the end."""
        return self.settled[-1] - self.settled[0]

    def gained(self) -> dict[str, int]:
        """What is alive at the end and was not at the first census after the warm-up."""
        later = [found for number, found in sorted(self.census.items()) if number]
        later = later[len(later) // 4 :]
        return {name: later[-1][name] - later[0][name] for name in later[0]} if later else {}

    def __str__(self) -> str:
        gained = ", ".join(f"{count:+d} {name}" for name, count in self.gained().items())
        return (
            f"{len(self.memory)} prompts in {self.seconds:.0f} s: {self.slope:+.2f} KB per prompt "
            f"after warm-up, {self.growth / 1024:+.1f} MB in all, {len(self.faults)} faults"
            + (f"; alive: {gained}" if gained else "")
            + "".join(f"; {count} x {where}" for where, count in sorted(self.interrupted.items()))
            + (f"; {self.files} saved files whole" if self.files else "")
        )


def save(reports: dict[str, Report], path: Path) -> None:
    """Draw the reports into `path` and write their numbers beside it, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(reports, path)
    numbers = {name: asdict(report) for name, report in reports.items()}
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1), "utf-8")


def draw(reports: dict[str, Report], path: Path) -> None:
    """Resident memory over prompts, a line per report."""
    from PIL import Image, ImageDraw

    every = [value for report in reports.values() for value in report.memory]
    low, high = min(every), max(every)
    most = max(len(report.memory) for report in reports.values())
    sheet = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(sheet)
    width, height = SIZE[0] - 2 * EDGE, SIZE[1] - 2 * EDGE
    pen.rectangle((EDGE, EDGE, EDGE + width, EDGE + height), outline="#bbb")
    for row, ((name, report), colour) in enumerate(zip(reports.items(), COLOURS, strict=False)):
        points = [
            (
                EDGE + number / max(most - 1, 1) * width,
                EDGE + height * (1 - (value - low) / max(high - low, 1.0)),
            )
            for number, value in enumerate(report.memory)
        ]
        pen.line(points, fill=colour, width=2)
        pen.text((EDGE, 8 + 16 * row), f"{name}: {report}"[:140], colour)
    pen.text((8, EDGE), f"{high / 1024:.0f} MB", "black")
    pen.text((8, EDGE + height - 10), f"{low / 1024:.0f} MB", "black")
    pen.text((EDGE, EDGE + height + 8), f"prompts 1 to {most}; resident memory", "black")
    sheet.save(path)
