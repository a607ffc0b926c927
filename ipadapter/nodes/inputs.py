"""Inputs that several nodes share, each described once.

Names, order, ranges and defaults are the de facto ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..attention.folding import EmbedsScaling
from ..attention.weight_types import WEIGHT_TYPES
from ..errors import Problem
from ..pictures.embeds import CombineMethod

IPAdapterWire = io.Custom("IPADAPTER")
InsightFaceWire = io.Custom("INSIGHTFACE")
# The Apply nodes offer all methods but these two, which only Combine Embeds has.
APPLY_COMBINE = [m.value for m in CombineMethod if m.value not in ("max", "min")]


def model() -> io.Input:
    return io.Model.Input(
        "model", tooltip="The checkpoint's MODEL. It stays unchanged; the output is a patched copy."
    )


def plain_model() -> io.Input:
    return io.Model.Input(
        "model", tooltip="The checkpoint's MODEL: its base decides which files fit."
    )


def ipadapter(optional: bool = False) -> io.Input:
    return IPAdapterWire.Input(
        "ipadapter",
        optional=optional,
        tooltip="The adapter: from IPAdapter Unified Loader or Model Loader.",
    )


def image(name: str = "image", tooltip: str = "Reference picture, or a batch of them.") -> io.Input:
    return io.Image.Input(name, tooltip=tooltip)


def weight(
    name: str = "weight",
    low: float = -1.0,
    high: float = 5.0,
    default: float = 1.0,
    step: float = 0.05,
    tooltip: str = "Strength of the image prompt. 0: off. Typical: 0.5 to 0.8 with a text prompt, "
    "1.0 without.",
) -> io.Input:
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def weight_type() -> io.Input:
    return io.Combo.Input(
        "weight_type",
        options=list(WEIGHT_TYPES),
        tooltip="Which layers act. linear: all alike. style transfer: colours and technique. "
        "composition: layout only.",
    )


def combine_embeds(default: str = "concat") -> io.Input:
    return io.Combo.Input(
        "combine_embeds",
        options=APPLY_COMBINE,
        default=default,
        tooltip="How several reference pictures become one prompt. concat keeps all of them; "
        "average mixes.",
    )


def start_end() -> list[io.Input]:
    return [
        io.Float.Input(
            "start_at",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="When the adapter begins to act: 0 is the first step. Later starts leave "
            "layout to the text.",
        ),
        io.Float.Input(
            "end_at",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="When the adapter stops: 1 is the last step. Earlier ends leave details to the "
            "text.",
        ),
    ]


def embeds_scaling() -> io.Input:
    return io.Combo.Input(
        "embeds_scaling",
        options=[scaling.value for scaling in EmbedsScaling],
        tooltip="What the weight scales. V only is the reference. The others keep high weights "
        "from burning out.",
    )


def image_negative() -> io.Input:
    return io.Image.Input(
        "image_negative",
        optional=True,
        tooltip="Picture to move away from. Left open: the reference's neutral grey.",
    )


def attn_mask() -> io.Input:
    return io.Mask.Input(
        "attn_mask",
        optional=True,
        tooltip="Where the adapter acts: white on, black off. Any size of the picture's shape.",
    )


def image_mask() -> io.Input:
    return io.Mask.Input(
        "image_mask",
        optional=True,
        tooltip="Part of the reference picture to read: white is read, black is left out. Plus "
        "adapters leave out its patches, others see grey there.",
    )


def clip_vision() -> io.Input:
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="The image encoder. Needed with IPAdapter Model Loader; the Unified Loader brings "
        "its own.",
    )


def weight_faceidv2() -> io.Input:
    return io.Float.Input(
        "weight_faceidv2",
        default=1.0,
        min=-1.0,
        max=5.0,
        step=0.05,
        tooltip="FaceID Plus v2 only: how much of the face's picture joins its identity.",
    )


def insightface() -> io.Input:
    return InsightFaceWire.Input(
        "insightface",
        optional=True,
        tooltip="Face analysis, for FaceID adapters: from IPAdapter InsightFace Loader or the "
        "FaceID loader.",
    )


def encode_batch_size() -> io.Input:
    return io.Int.Input(
        "encode_batch_size",
        default=0,
        min=0,
        max=4096,
        tooltip="Pictures encoded at once. 0: chosen for you. Lower it if encoding runs out of "
        "memory.",
    )


def enhance(ratio: float) -> list[io.Input]:
    return [
        io.Int.Input(
            "enhance_tiles",
            default=2,
            min=1,
            max=16,
            tooltip="The encoder looks at the picture in this many tiles per side, so that it sees "
            "details.",
        ),
        io.Float.Input(
            "enhance_ratio",
            default=ratio,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="How much of the whole picture stays in the mix. 0: details only.",
        ),
    ]


def check_choice(value: str, options: Sequence[str], name: str) -> str:
    """Refuse a string that is not in a widget's list: older hosts do not check
    what a client sends."""
    if value not in options:
        raise Problem.BAD_VALUE(
            f"{name} is {value!r}: expected one of {', '.join(map(repr, options))}."
        )
    return value


def seed(lowest: int, tooltip: str) -> io.Input:
    """A seed that stays as it is from run to run; by default the lowest."""
    return io.Int.Input(
        "seed",
        default=lowest,
        min=lowest,
        max=2**63 - 1,
        optional=True,
        control_after_generate=False,
        tooltip=tooltip,
    )


def negative_mask_vision() -> list[io.Input]:
    """The three optional sockets that close most Apply nodes."""
    return [image_negative(), attn_mask(), clip_vision()]


def patched_model() -> io.Output:
    return io.Model.Output(display_name="MODEL", tooltip="The MODEL with the image prompt in it.")
