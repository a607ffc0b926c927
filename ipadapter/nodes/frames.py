"""Nodes that spread weights and pictures over the frames of an animation."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..apply.request import chosen
from ..attention.weight_texts import numbers, whole_number
from ..errors import Problem
from ..frames import Method, Timing, WeightsStrategy
from . import inputs

WeightsStrategyWire = io.Custom("WEIGHTS_STRATEGY")
MAX_FRAMES = 9999


class IPAdapterWeights(io.ComfyNode):
    """A weight for every frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterWeights",
            display_name="IPAdapter Weights",
            category="ipadapter/weights",
            description="Makes a weight for every frame, and repeats the pictures to match. "
            "Connect weights and image_1 to one batch node, weights_invert and image_2 to another.",
            inputs=[
                io.String.Input(
                    "weights",
                    default="1.0, 0.0",
                    multiline=True,
                    tooltip="Numbers with commas or on lines of their own. The first and the last "
                    "count; with custom timing each is one frame.",
                ),
                io.Combo.Input(
                    "timing",
                    options=[timing.value for timing in Timing],
                    default=Timing.LINEAR.value,
                    tooltip="How the weight gets from first to last. ease_in starts slowly, "
                    "ease_out ends slowly. custom: your list as it is.",
                ),
                _frames("frames", 0, "Frames per picture. 0: one for each weight in the list."),
                _frames("start_frame", 0, "Frame at which the weight begins to change."),
                _frames("end_frame", MAX_FRAMES, "Frame at which the last weight is reached."),
                _frames("add_starting_frames", 0, "Frames to hold before everything."),
                _frames("add_ending_frames", 0, "Frames to hold after everything."),
                io.Combo.Input(
                    "method",
                    options=[method.value for method in Method],
                    tooltip="full: one picture after the other. shift, alternate: each fades into "
                    "the next; alternate keeps a picture in its stream while it stays.",
                ),
                _pictures(),
                inputs.seed(0, "Chooses the weights of random timing."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        weights: str,
        timing: str,
        method: str,
        image: Tensor | None = None,
        **frames: int,
    ) -> io.NodeOutput:
        strategy = WeightsStrategy(
            weights=numbers(weights, "weights"),
            timing=chosen(Timing, timing, "timing"),
            method=chosen(Method, method, "method"),
            **{name: whole_number(value, name) for name, value in frames.items()},
        )
        return _scheduled(strategy, image)


class IPAdapterWeightsFromStrategy(io.ComfyNode):
    """The same curve for other pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterWeightsFromStrategy",
            display_name="IPAdapter Weights From Strategy",
            category="ipadapter/weights",
            description="Uses the curve of another weights node again, for other pictures.",
            inputs=[
                _strategy(),
                _pictures(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, weights_strategy: Any, image: Tensor | None = None) -> io.NodeOutput:
        return _scheduled(_checked(weights_strategy), image)


class IPAdapterPromptScheduleFromWeightsStrategy(io.ComfyNode):
    """Text prompts that change with the pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterPromptScheduleFromWeightsStrategy",
            display_name="Prompt Schedule From Weights Strategy",
            category="ipadapter/weights",
            description="Writes a prompt schedule for prompt travel nodes: a prompt per picture, "
            "at the frame where that picture begins.",
            inputs=[
                _strategy(),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="A prompt per line, in the order of the pictures. The last one stays "
                    "for the rest.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt_schedule")],
        )

    @classmethod
    def execute(cls, weights_strategy: Any, prompt: str = "") -> io.NodeOutput:
        return io.NodeOutput(_checked(weights_strategy).prompt_schedule(prompt))


class IPAdapterCombineWeights(io.ComfyNode):
    """Two lists of weights in a row."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterCombineWeights",
            display_name="IPAdapter Combine Weights",
            category="ipadapter/utils",
            description="Puts the frames of two weights nodes one after the other.",
            inputs=[
                _list(
                    "weights_1",
                    "Weights of the first frames: connect weights of IPAdapter Weights. A number "
                    "typed here is one frame.",
                ),
                _list("weights_2", "Weights of the frames that follow."),
            ],
            outputs=[
                io.Float.Output(display_name="weights", tooltip="A weight per frame."),
                io.Int.Output(display_name="count", tooltip="Number of frames."),
            ],
        )

    @classmethod
    def execute(cls, weights_1: Any, weights_2: Any) -> io.NodeOutput:
        weights = [*numbers(weights_1, "weights_1"), *numbers(weights_2, "weights_2")]
        return io.NodeOutput(weights, len(weights))


def _frames(name: str, default: int, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=default, min=0, max=MAX_FRAMES, tooltip=tooltip)


def _list(name: str, tooltip: str) -> io.Input:
    return inputs.weight(name, 0.0, 1.0, 0.0, tooltip=tooltip)


def _pictures() -> io.Input:
    return io.Image.Input("image", optional=True, tooltip="Pictures to spread over the frames.")


def _strategy() -> io.Input:
    return WeightsStrategyWire.Input(
        "weights_strategy", tooltip="From IPAdapter Weights: the curve, and how pictures follow it."
    )


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(display_name="weights", tooltip="A weight per frame, for image_1."),
        io.Float.Output(display_name="weights_invert", tooltip="1 - weight: for image_2."),
        io.Int.Output(display_name="total_frames", tooltip="Number of frames."),
        io.Image.Output(display_name="image_1", tooltip="A picture per frame."),
        io.Image.Output(
            display_name="image_2", tooltip="The picture that fades against image_1, per frame."
        ),
        WeightsStrategyWire.Output(display_name="weights_strategy"),
    ]


def _scheduled(strategy: WeightsStrategy, image: Tensor | None) -> io.NodeOutput:
    """The six outputs; without pictures the picture outputs are empty."""
    if image is not None:
        strategy = strategy.with_images(len(image))
    schedule = strategy.schedule(strategy.images)
    streams = [
        None if image is None or indices is None else image[list(indices)]
        for indices in (schedule.image_1, schedule.image_2)
    ]
    return io.NodeOutput(
        list(schedule.weights), list(schedule.weights_invert), len(schedule), *streams, strategy
    )


def _checked(value: Any) -> WeightsStrategy:
    if isinstance(value, WeightsStrategy):
        return value
    raise Problem.WRONG_INPUT(
        f"The weights_strategy input received a {type(value).__name__}: expected the output of "
        "IPAdapter Weights."
    )


WEIGHTS: list[type[io.ComfyNode]] = [
    IPAdapterWeights,
    IPAdapterWeightsFromStrategy,
    IPAdapterPromptScheduleFromWeightsStrategy,
    IPAdapterCombineWeights,
]
