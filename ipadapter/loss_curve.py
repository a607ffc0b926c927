"""A picture of how a training goes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 360
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 40, 16, 32
_PAPER, _INK, _GRID = "#ffffff", "#24292f", "#d8dee4"
_FAINT, _STRONG = "#b6d3f5", "#0b62c4"


def loss_curve(losses: Sequence[float], steps: int, notice: str = "") -> Image.Image:
    """Each loss faint, their running mean strong, over `steps` steps. `notice`: below the title."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(picture)
    smooth = running_mean(losses)
    last = f", mean of the last {min(len(losses), _window(losses))}: {smooth[-1]:.4f}"
    pen.text((_LEFT, 6), f"loss, {len(losses)} of {steps} steps{last if losses else ''}", _INK)
    pen.text((_LEFT, 21), notice[:96], "#b42318")
    low, high = _range(losses)
    for part in range(5):
        value = low + (high - low) * part / 4
        y = _y(value, low, high)
        pen.line([(_LEFT, y), (WIDTH - _RIGHT, y)], _GRID)
        pen.text((6, y - 6), f"{value:.3f}", _INK)
        step = round(steps * part / 4)
        pen.text((_x(step, steps) - 8, HEIGHT - _BOTTOM + 8), str(step), _INK)
    for values, colour, width in ((losses, _FAINT, 1), (smooth, _STRONG, 2)):
        points = [(_x(i + 1, steps), _y(v, low, high)) for i, v in enumerate(values)]
        if len(points) > 1:
            pen.line(points, colour, width)
    return picture


def running_mean(losses: Sequence[float]) -> list[float]:
    """Mean of each loss with those before it, a tenth of the run at most; 0 where there is none."""
    window = _window(losses)
    sums = [0.0, *accumulate(losses)]
    ends = range(1, len(sums))
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in ends] or [0.0]


def _window(losses: Sequence[float]) -> int:
    return max(min(len(losses) // 10, 200), 5)


def _range(losses: Sequence[float]) -> tuple[float, float]:
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _x(step: int, steps: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(steps, 1)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)
