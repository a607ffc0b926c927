"""Weights over frames and over layers: the texts users write, and what they mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import torch

from .errors import Problem

_Value = TypeVar("_Value")


class Timing(str, Enum):
    """How the weight gets from its first to its last value."""

    CUSTOM = "custom"
    LINEAR = "linear"
    EASE_IN_OUT = "ease_in_out"
    EASE_IN = "ease_in"
    EASE_OUT = "ease_out"
    RANDOM = "random"


class Method(str, Enum):
    """How several images share the frames."""

    FULL = "full batch"
    SHIFT = "shift batches"
    ALTERNATE = "alternate batches"


# Progress 0..1 over time 0..1. In eases in (starts slowly), out eases out (ends slowly), as in CSS
# and animation programs; the pack that introduced these names has the two exchanged.
EASINGS: Mapping[Timing, Callable[[float], float]] = {
    Timing.LINEAR: lambda time: time,
    Timing.EASE_IN_OUT: lambda time: (1.0 - math.cos(math.pi * time)) / 2.0,
    Timing.EASE_IN: lambda time: 1.0 - math.cos(math.pi * time / 2.0),
    Timing.EASE_OUT: lambda time: math.sin(math.pi * time / 2.0),
}


@dataclass(frozen=True)
class WeightsStrategy:
    """A weight curve and how images follow each other along it.

    `frames` is the length of the curve, so of one image (full batch) or of one cross-fade between
    two; 0 means one frame per weight given. The curve rests on its first weight before
    `start_frame` and on its last from `end_frame` on. With custom timing the weights are the curve
    and these three say nothing. `images` is the number of images it was last used with.
    """

    weights: tuple[float, ...] = (1.0, 0.0)
    timing: Timing = Timing.LINEAR
    frames: int = 0
    start_frame: int = 0
    end_frame: int = 9999
    add_starting_frames: int = 0
    add_ending_frames: int = 0
    method: Method = Method.FULL
    seed: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "start_frame", "end_frame", "images"):
            _check_count(name, getattr(self, name))
        for name in ("add_starting_frames", "add_ending_frames"):
            _check_count(name, getattr(self, name))
        if self.timing is Timing.CUSTOM and not self.weights:
            raise Problem.WEIGHTS_TEXT(
                'weights: custom timing needs at least one number, for example "1.0, 0.5, 0.0".'
            )

    def curve(self) -> tuple[float, ...]:
        """The weights of one image, or of one cross-fade; never empty."""
        if self.timing is Timing.CUSTOM:
            return self.weights
        first, last = (self.weights[0], self.weights[-1]) if self.weights else (0.0, 1.0)
        length = self.frames or max(1, len(self.weights))
        start, end = self.start_frame, min(self.end_frame, length)
        progress = self._progress(max(0, end - start))
        moving = [first + (last - first) * step for step in progress]
        curve = [first] * min(start, length) + moving
        return tuple(curve + [last] * (length - len(curve)))

    def schedule(self, images: int = 0) -> WeightSchedule:
        """Weights and image indices frame by frame; without images, the curve alone."""
        curve = self.curve()
        segments = _segments(self.method, images)
        weights: list[float] = []
        streams: tuple[list[int], list[int]] = ([], [])
        for first, second, mirrored in segments:
            weights += _mirror(curve) if mirrored else curve
            streams[0].extend([first] * len(curve))
            streams[1].extend([second] * len(curve))
        paired = images > 0 and self.method is not Method.FULL
        return WeightSchedule(
            weights=self._extend(weights),
            image_1=self._extend(streams[0]) if images > 0 else None,
            image_2=self._extend(streams[1]) if paired else None,
        )

    def with_images(self, images: int) -> WeightsStrategy:
        """The same strategy, remembering how many images it is used with."""
        return replace(self, images=images)

    def prompt_schedule(self, text: str) -> str:
        """One line `"frame": "prompt",` per image, as the prompt schedulers of other packs read it.

        `text` holds a prompt per line. Where it has fewer lines than there are images the last one
        is kept; surplus lines are left out. Without images every prompt gets its turn.
        """
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        if not prompts:
            return ""
        count, length = self.images or len(prompts), len(self.curve())
        keys = {0: prompts[0]} if self.add_starting_frames else {}
        for index in range(count):
            frame = self.add_starting_frames + index * length
            keys[frame] = prompts[min(index, len(prompts) - 1)]
        if self.add_ending_frames and self.method is Method.FULL:
            last = prompts[min(count, len(prompts)) - 1]
            keys[self.add_starting_frames + count * length] = last
        lines = [
            f'"{frame}": {json.dumps(prompt, ensure_ascii=False)},\n'
            for frame, prompt in keys.items()
        ]
        return "".join(lines)

    def _progress(self, duration: int) -> list[float]:
        if self.timing is Timing.RANDOM:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.rand(duration, generator=generator, dtype=torch.float64).tolist()
        ease = EASINGS[self.timing]
        if duration < 2:
            return [0.0] * duration
        return [*(ease(index / (duration - 1)) for index in range(duration - 1)), 1.0]

    def _extend(self, values: Sequence[_Value]) -> tuple[_Value, ...]:
        """Hold the first and the last value for the added frames."""
        starting = [values[0]] * self.add_starting_frames
        return (*starting, *values, *[values[-1]] * self.add_ending_frames)


@dataclass(frozen=True)
class WeightSchedule:
    """Per frame: a weight, the image it is for, and the image that takes the rest of it.

    The indices are None where there are no images, or no second one.
    """

    weights: tuple[float, ...]
    image_1: tuple[int, ...] | None
    image_2: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def weights_invert(self) -> tuple[float, ...]:
        """1 - weight of each frame: the second image's share."""
        return tuple(1.0 - weight for weight in self.weights)


def format_layer_weights(weights: Mapping[int, float]) -> str:
    """The text that parse_layer_weights reads back, in layer order."""
    return ", ".join(
        f"{index}:{repr(float(weights[index])).removesuffix('.0')}" for index in sorted(weights)
    )


def _segments(method: Method, images: int) -> list[tuple[int, int, bool]]:
    """(first image, second image, whether the weights run mirrored) of each stretch of frames."""
    if method is Method.FULL or images < 2:
        return [(index, index, False) for index in range(max(1, images))]
    pairs = range(images - 1)
    if method is Method.SHIFT:
        return [(index, index + 1, False) for index in pairs]
    # Even images stay in the first stream and odd ones in the second, so that each image fades in
    # and out where it is.
    return [(index + index % 2, index + 1 - index % 2, index % 2 == 1) for index in pairs]


def _mirror(curve: Sequence[float]) -> list[float]:
    total = min(curve) + max(curve)
    return [total - weight for weight in curve]


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise Problem.BAD_VALUE(f"{name}: expected 0 or more, got {value}.")
