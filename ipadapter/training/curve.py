"""A picture of how a training goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 640, 360
_LEFT, _TOP, _RIGHT, _BOTTOM = 66, 84, 72, 36
# For the dark nodes that it is shown on, at about half its size.
_PAPER, _INK, _GRID, _ALARM = "#1b1d21", "#d5dae1", "#41464e", "#ff8a80"
_FAINT, _STRONG, _SHARE, _UNSEEN = "#35618f", "#6db3ff", "#ffb057", "#8ddb8c"
_LETTERS = ImageFont.load_default(20)
_SMALL = ImageFont.load_default(17)


def loss_curve(
    losses: Sequence[float],
    compared: Sequence[Sequence[float]],
    steps: int,
    notice: str = "",
    validated: Sequence[Sequence[float]] = (),
) -> Image.Image:
    """Each loss faint, their running mean strong, over `steps` steps. `notice`: below the title.

    compared: now and then a step, and its loss as a share of the loss without the adapter: what the
    adapter does, free of how hard each step's draw is. Drawn with an axis of its own, on the right.
    validated: the same of pictures that are not trained on.
    """
    smooth, shares = running_mean(losses), running_mean([share for _, share in compared])
    last = f", mean of the last {min(len(losses), _window(losses))}: {smooth[-1]:.4f}"
    share = f", now {shares[-1]:.1%}" if compared else ""
    unseen = [share for _, share in validated]
    judged = f"of pictures held out, now {unseen[-1]:.1%}" if unseen else ""
    lines = (
        (f"loss, {len(losses)} of {steps} steps{last if losses else ''}", _STRONG),
        (f"share of the loss without the adapter{share}", _SHARE),
        (notice, _ALARM) if notice else (judged, _UNSEEN),
    )
    picture, pen = _paper(lines)
    right = _range([*shares, *unseen] if compared else [1.0])
    _axes(pen, steps, _range(losses), right)
    _falling(pen, losses, steps)
    numbers = [step for step, _ in compared]
    _line(pen, zip(numbers, shares, strict=False), steps, right, (_SHARE, 4))
    _line(pen, [(step, share) for step, share in validated], steps, right, (_UNSEEN, 4))
    return picture


def study_curve(errors: Sequence[float], steps: int, notice: str = "") -> Image.Image:
    """The errors of a warm start, each a share of what there is to learn."""
    now = f", now {running_mean(errors)[-1]:.1%}" if errors else ""
    lines = (
        (f"warm start, {len(errors)} of {steps} steps", _STRONG),
        (f"share of the captions that the adapter misses{now}", _STRONG),
        (notice, _ALARM),
    )
    picture, pen = _paper(lines)
    _axes(pen, steps, _range(errors), _range(errors))
    _falling(pen, errors, steps)
    return picture


def _paper(lines: Iterable[tuple[str, str]]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture under some lines of text, with their colours."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(picture)
    for row, (line, colour) in enumerate(lines):
        pen.text((10, 4 + 25 * row), _fitting(line), colour, _LETTERS)
    return picture, pen


def _falling(pen: ImageDraw.ImageDraw, values: Sequence[float], steps: int) -> None:
    """Each value faint, their running mean strong."""
    every = range(1, len(values) + 1)
    for heights, colour, width in ((values, _FAINT, 1), (running_mean(values), _STRONG, 4)):
        _line(pen, zip(every, heights, strict=False), steps, _range(values), (colour, width))


_Range = tuple[float, float]


def _axes(pen: ImageDraw.ImageDraw, steps: int, left: _Range, right: _Range) -> None:
    for part in range(5):
        loss, share = (low + (high - low) * part / 4 for low, high in (left, right))
        y, step = _y(loss, left), round(steps * part / 4)
        pen.line([(_LEFT, y), (WIDTH - _RIGHT, y)], _GRID)
        pen.text((_LEFT - 8, y), f"{loss:.3f}", _STRONG, _SMALL, "rm")
        pen.text((WIDTH - _RIGHT + 8, y), f"{share:.1%}", _SHARE, _SMALL, "lm")
        pen.text((_x(step, steps), HEIGHT - _BOTTOM + 10), str(step), _INK, _SMALL, "mt")


def _fitting(text: str) -> str:
    """As much of a text as fits on a line."""
    while _LETTERS.getlength(text) > WIDTH - 20:
        text = f"{text.rstrip('…')[:-1]}…"
    return text


def _line(
    pen: ImageDraw.ImageDraw,
    values: Iterable[tuple[float, float]],
    steps: int,
    low_high: _Range,
    stroke: tuple[str, int],
) -> None:
    points = [(_x(step, steps), _y(value, low_high)) for step, value in values]
    if len(points) > 1:
        pen.line(points, *stroke)


def running_mean(losses: Sequence[float]) -> list[float]:
    """Mean of each loss with those before it, a tenth of the run at most; 0 where there is none."""
    window = _window(losses)
    sums = [0.0, *accumulate(losses)]
    ends = range(1, len(sums))
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in ends] or [0.0]


def _window(losses: Sequence[float]) -> int:
    return max(min(len(losses) // 10, 200), 5)


def _range(values: Sequence[float]) -> _Range:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _x(step: float, steps: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / max(steps, 1)


def _y(value: float, low_high: _Range) -> float:
    low, high = low_high
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)
