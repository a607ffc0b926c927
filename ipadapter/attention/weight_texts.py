"""Weights as they come: written by users, "1.0, 0.5" over frames, "3:2.5, 6:1" over layers;
and as other nodes make them, one number or many."""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..errors import Problem

logger = logging.getLogger("ipadapter")

NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
SEPARATORS = r"[,;\n]"


def parse_weights(text: str, name: str = "weights") -> tuple[float, ...]:
    """Read numbers separated by commas, semicolons or new lines; empty places do not count."""
    parts = [part.strip() for part in re.split(SEPARATORS, text)]
    return tuple(
        _number(part, f"{name}, number {position}")
        for position, part in enumerate(parts, start=1)
        if part
    )


def numbers(value: Any, name: str) -> tuple[float, ...]:
    """One number, or many, as plain floats.

    Nodes of other packs send numpy's scalars and arrays, tensors, lists of either, and text.
    `name` is the input's, for messages.
    """
    if isinstance(value, str):
        return parse_weights(value, name)
    given = value.tolist() if hasattr(value, "tolist") else value
    try:
        items = tuple(given)
    except TypeError:
        items = (given,)
    try:
        return tuple(float(item) for item in items)
    except (TypeError, ValueError, RuntimeError):
        raise Problem.BAD_VALUE(
            f"{name} is {_shown(value)}: expected a number, or a list of numbers."
        ) from None


def number(value: Any, name: str) -> float:
    """One finite number as a plain float; whatever `numbers` takes, as long as it is one."""
    found = numbers(value, name)
    if len(found) != 1:
        raise Problem.BAD_VALUE(f"{name} is a list of {len(found)} numbers: expected one.")
    if not math.isfinite(found[0]):
        raise Problem.BAD_VALUE(f"{name} is {found[0]}: expected a finite number.")
    return found[0]


def whole_number(value: Any, name: str) -> int:
    """One number without a fraction, however large."""
    with suppress(TypeError):
        return operator.index(value)
    found = number(value, name)
    if not found.is_integer():
        raise Problem.BAD_VALUE(f"{name} is {found}: expected a whole number.")
    return int(found)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else type(value).__name__


def parse_layer_weights(text: str, count: int) -> dict[int, float]:
    """Read "index:weight, index:weight"; `count` is the number of indices the model has.

    Commas, semicolons and new lines separate; an empty text is an empty mapping. What is wrong is
    quoted in the error, with its place. Of a layer that is named twice the last weight counts, and
    layers that the model does not have are left out, with a line in the log: sliders made for one
    model serve another.
    """
    parts = [part.strip() for part in re.split(SEPARATORS, text)]
    read = dict(
        _layer_weight(part, position, count) for position, part in enumerate(parts, start=1) if part
    )
    kept = {index: weight for index, weight in read.items() if index < count}
    if len(kept) < len(read):
        _report_beyond(read.keys() - kept.keys(), count, idle=not any(kept.values()))
    return kept


def _report_beyond(indices: Iterable[int], count: int, idle: bool) -> None:
    logger.warning(
        "layer_weights: this model has layers 0 to %d. Left out: %s.%s",
        count - 1,
        ", ".join(map(str, sorted(indices))),
        " No other layer has a weight, so the adapter does nothing." if idle else "",
    )


def _layer_weight(part: str, position: int, count: int) -> tuple[int, float]:
    place = f'layer_weights, entry {position}: "{part}"'
    index, colon, weight = (piece.strip() for piece in part.partition(":"))
    if not colon:
        raise Problem.WEIGHTS_TEXT(f'{place} has no ":". Write index:weight, for example "3:0.8".')
    if not weight:
        raise Problem.WEIGHTS_TEXT(
            f'{place} has no weight after ":". Write for example "{index or 3}:0.8".'
        )
    if not re.fullmatch(r"\d{1,6}", index, re.ASCII):
        raise Problem.WEIGHTS_TEXT(
            f'{place}: expected a layer index from 0 to {count - 1}, got "{index}" before ":".'
        )
    return int(index), _number(weight, place)


def _number(text: str, place: str) -> float:
    if re.fullmatch(NUMBER, text, re.ASCII | re.IGNORECASE) and math.isfinite(float(text)):
        return float(text)
    raise Problem.WEIGHTS_TEXT(f'{place}: expected a number such as 0.8, got "{text}".')
