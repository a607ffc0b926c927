"""What a soak has seen: memory over prompts, what was alive, and what was wrong; and a drawing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

COLOURS = ("#0060c0", "#c05000")
SIZE, EDGE = (900, 420), 55


def slope(points: Mapping[int, float]) -> float:
    """Rise per step after the first quarter: a median over distant pairs, which jumps
    do not move."""
    kept = sorted(points.items())
    kept = kept[len(kept) // 4 :]
    far = len(kept) // 4
    pairs = [
        (b - a) / (j - i) for number, (i, a) in enumerate(kept) for j, b in kept[number + 1 + far :]
    ]
    return statistics.median(pairs) if pairs else 0.0


@dataclass
class Report:
    """What one server did.

    memory: KB resident after each prompt. trimmed: the same after some of them, once freed memory
    was given back. in_use: KB asked of the C library and not given back, where it tells; between
    them and trimmed lie the gaps that it keeps. census: what was alive then.
    patches: for each way of applying, every different set of patches that its MODELs had.
    interrupted: what interrupts hit. files: saved ones that were read again.
    """

    memory: list[float] = field(default_factory=list)
    trimmed: dict[int, float] = field(default_factory=dict)
    in_use: dict[int, float] = field(default_factory=dict)
    census: dict[int, dict[str, int]] = field(default_factory=dict)
    patches: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    interrupted: dict[str, int] = field(default_factory=dict)
    files: int = 0
    seconds: float = 0.0

    @property
    def slope(self) -> float:
        """KB per prompt of memory in use: what the C library keeps for later is given back first,
        and the prompts are the same."""
        return slope(self.trimmed)

    @property
    def slope_before(self) -> float:
        """KB per prompt of resident memory as it is."""
        return slope(dict(enumerate(self.memory)))

    @property
    def slope_in_use(self) -> float:
        """KB per prompt of what the program itself holds."""
        return slope(self.in_use)

    def gained(self) -> dict[str, int]:
        """What is alive at the end and was not at the first census after the warm-up."""
        later = [found for number, found in sorted(self.census.items()) if number]
        later = later[len(later) // 4 :]
        return {name: later[-1][name] - later[0][name] for name in later[0]} if later else {}

    def __str__(self) -> str:
        gained = ", ".join(f"{count:+d} {name}" for name, count in self.gained().items())
        return (
            f"{len(self.memory)} prompts in {self.seconds:.0f} s, after warm-up in KB per prompt: "
            f"{self.slope:+.2f} resident once freed memory is given back, {self.slope_before:+.2f} "
            f"before, {self.slope_in_use:+.2f} in use; {len(self.faults)} faults"
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
    """Resident memory over prompts, two lines per report."""
    from PIL import Image, ImageDraw

    every = [value for report in reports.values() for value in report.memory]
    every += [value for report in reports.values() for value in report.trimmed.values()]
    low, high = min(every), max(every)
    most = max(len(report.memory) for report in reports.values())
    sheet = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(sheet)
    width, height = SIZE[0] - 2 * EDGE, SIZE[1] - 2 * EDGE
    pen.rectangle((EDGE, EDGE, EDGE + width, EDGE + height), outline="#bbb")
    for row, ((name, report), colour) in enumerate(zip(reports.items(), COLOURS, strict=False)):
        for line, thickness in zip(lines(report), (1, 3), strict=True):
            points = [
                (
                    EDGE + number / max(most - 1, 1) * width,
                    EDGE + height * (1 - (value - low) / max(high - low, 1.0)),
                )
                for number, value in line.items()
            ]
            pen.line(points, fill=colour, width=thickness)
        pen.text((EDGE, 8 + 16 * row), f"{name}: {report}"[:140], colour)
    pen.text((8, EDGE), f"{high / 1024:.0f} MB", "black")
    pen.text((8, EDGE + height - 10), f"{low / 1024:.0f} MB", "black")
    said = f"prompts 1 to {most}; thin: resident memory, thick: after freed memory is given back"
    pen.text((EDGE, EDGE + height + 8), said, "black")
    sheet.save(path)


def lines(report: Report) -> tuple[dict[int, float], dict[int, float]]:
    """What is drawn: memory by prompt, as it is and trimmed."""
    return dict(enumerate(report.memory)), report.trimmed
