"""Nodes of 2023, whose successors have other ids and inputs: shared files and programs
still name them.

They are hidden from the menu. Ids, input names and the order of widgets are those of that time;
whatever programs used to leave out is optional.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Any

from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ...adapters.families import FaceVersion
from ...apply.request import Request, chosen
from ...attention.folding import EmbedsScaling
from ...attention.weight_texts import number
from ...host.faces import load_face_analysis
from ...pictures.embeds import CombineMethod
from ...pictures.images import CropPosition, prep_image
from ...pictures.noise import NoiseType, noise_image
from .. import inputs
from ..base import ABSENT, ApplyNode
from ..embeds import EmbedsWire, IPAdapterCombineEmbeds
from ..faces import provider

_SINCE = "For workflows of 2023. Today: "
# What face analysis is given: a face that fills the picture is found only with room around it.
_FACE_SIDE, _ROOM = 640, 32


class OldWeightType(str, Enum):
    """What the weight scales; the layers all act alike."""

    ORIGINAL = "original"
    LINEAR = "linear"
    CHANNEL_PENALTY = "channel penalty"


_SCALINGS = {
    OldWeightType.ORIGINAL: EmbedsScaling.V_ONLY,
    OldWeightType.LINEAR: EmbedsScaling.K_AND_V,
    OldWeightType.CHANNEL_PENALTY: EmbedsScaling.K_AND_MEAN_V_PENALTY,
}


class OldApply(ApplyNode):
    """What the Apply nodes of 2023 share."""

    @classmethod
    def old_schema(
        cls, node_id: str, display_name: str, today: str, *given: io.Input, category: str
    ) -> io.Schema:
        """Inputs as `schema` has them, of which only those that every prompt has are required."""
        description = f"{_SINCE}{today}."
        schema = cls.schema(node_id, display_name, description, *given, category=category)
        schema.is_deprecated = True
        return schema

    @classmethod
    def request(
        cls,
        noise: float = 0.0,
        weight_type: str = OldWeightType.ORIGINAL.value,
        unfold_batch: bool = False,
        **given: Any,
    ) -> Request:
        scaling = _SCALINGS[chosen(OldWeightType, weight_type, "weight_type")]
        return _with_noise(
            Request(**given, embeds_scaling=scaling.value, per_item=unfold_batch),
            number(noise, "noise"),
        )


def _with_noise(request: Request, noise: float) -> Request:
    """The negative picture that the `noise` of 2023 stood for: the reference, shuffled. 0 was off,
    a little above it all noise, and 1 the picture itself."""
    if noise <= 0 or request.image is None:
        return request
    negative = noise_image(NoiseType.SHUFFLE, 1.0 - min(noise, 1.0), image=request.image)
    return replace(request, image_negative=negative)


def _optional(*given: io.Input) -> list[io.Input]:
    for one in given:
        one.optional = True
    return list(given)


def _noise() -> io.Input:
    return io.Float.Input(
        "noise",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="A noisy copy of the picture to move away from. 0: none. 0.01: all noise, 1: "
        "hardly any.",
    )


def _weight_type() -> io.Input:
    return io.Combo.Input(
        "weight_type",
        options=[kind.value for kind in OldWeightType],
        tooltip="What the weight scales, as embeds_scaling today. original: V only. linear: K+V. "
        "channel penalty: K+mean(V) w/ C penalty.",
    )


def _unfold_batch() -> io.Input:
    return io.Boolean.Input(
        "unfold_batch", default=False, tooltip="On: one picture per latent, as the Batch nodes."
    )


class IPAdapterApply(OldApply):
    """Today: IPAdapter Advanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = (inputs.weight(high=3.0), _noise(), _weight_type(), *inputs.start_end())
        return cls.old_schema(
            "IPAdapterApply",
            "Apply IPAdapter",
            "IPAdapter Advanced (Image Prompt)",
            inputs.image(),
            inputs.clip_vision(),
            *_optional(*settings, _unfold_batch()),
            inputs.attn_mask(),
            inputs.insightface(),
            category="ipadapter",
        )

    @classmethod
    def validate_inputs(cls, clip_vision_output: Any = ABSENT) -> bool | str:
        return clip_vision_output is ABSENT or (
            "This node is of September 2023, when it took a CLIP_VISION_OUTPUT. Connect Load CLIP "
            "Vision to clip_vision and the picture to image."
        )


class IPAdapterApplyFaceID(OldApply):
    """Today: IPAdapter FaceID."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = (inputs.weight(high=3.0), _noise(), _weight_type(), *inputs.start_end())
        version = io.Boolean.Input(
            "faceid_v2", default=False, tooltip="On: the file is FaceID Plus v2. Off: v1."
        )
        share = inputs.weight_faceidv2()
        share.id = "weight_v2"
        return cls.old_schema(
            "IPAdapterApplyFaceID",
            "Apply IPAdapter FaceID",
            "IPAdapter FaceID",
            inputs.image(),
            inputs.clip_vision(),
            inputs.insightface(),
            *_optional(*settings, version, share, _unfold_batch()),
            inputs.attn_mask(),
            category="ipadapter/faceid",
        )

    @classmethod
    def request(
        cls, faceid_v2: bool | None = None, weight_v2: float = 1.0, **given: Any
    ) -> Request:
        said = FaceVersion.V2 if faceid_v2 else FaceVersion.V1
        version = FaceVersion.AUTO if faceid_v2 is None else said
        return super().request(face_version=version.value, weight_faceidv2=weight_v2, **given)


class IPAdapterApplyEncoded(OldApply):
    """Today: IPAdapter Embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = (inputs.weight(high=3.0), _weight_type(), *inputs.start_end())
        return cls.old_schema(
            "IPAdapterApplyEncoded",
            "Apply IPAdapter from Encoded",
            "IPAdapter Embeds",
            EmbedsWire.Input("embeds", tooltip="From IPAdapter Encoder or Load Embeds."),
            *_optional(*settings, _unfold_batch()),
            inputs.attn_mask(),
            category="ipadapter/embeds",
        )

    @classmethod
    def request(cls, embeds: Any = None, **given: Any) -> Request:
        return super().request(pos_embed=embeds, **given)


class IPAdapterBatchEmbeds(io.ComfyNode):
    """Today: IPAdapter Combine Embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterBatchEmbeds",
            display_name="IPAdapter Batch Embeds",
            category="ipadapter/embeds",
            description=f"{_SINCE}IPAdapter Combine Embeds.",
            inputs=[
                EmbedsWire.Input(name, tooltip="From IPAdapter Encoder or Load Embeds.")
                for name in ("embed1", "embed2")
            ],
            outputs=[EmbedsWire.Output(display_name="EMBEDS")],
            is_deprecated=True,
        )

    @classmethod
    def execute(cls, embed1: Any, embed2: Any) -> io.NodeOutput:
        return IPAdapterCombineEmbeds.execute(
            CombineMethod.CONCAT.value, embed1=embed1, embed2=embed2
        )


class InsightFaceLoader(io.ComfyNode):
    """Today: IPAdapter InsightFace Loader."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InsightFaceLoader",
            display_name="Load InsightFace",
            category="ipadapter/loaders",
            description=f"{_SINCE}IPAdapter InsightFace Loader.",
            inputs=_optional(provider(("CPU", "CUDA", "ROCM"))),
            outputs=[inputs.InsightFaceWire.Output(display_name="INSIGHTFACE")],
            is_deprecated=True,
        )

    @classmethod
    def execute(cls, provider: str = "CPU") -> io.NodeOutput:
        return io.NodeOutput(load_face_analysis("buffalo_l", provider))


class PrepImageForInsightFace(io.ComfyNode):
    """Today's face nodes need no such help, but its picture goes to the image encoder too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sides = ("center", "top", "bottom", "left", "right")
        return io.Schema(
            node_id="PrepImageForInsightFace",
            display_name="Prepare Image For InsightFace",
            category="ipadapter/utils",
            description=f"{_SINCE}the picture as it is, or Prep Image For ClipVision.",
            inputs=[
                inputs.image(),
                *_optional(
                    io.Combo.Input(
                        "crop_position",
                        options=list(sides),
                        tooltip="Part that stays of a wide or tall picture.",
                    ),
                    io.Float.Input(
                        "sharpening",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip="Brings out detail that shrinking loses.",
                    ),
                    io.Boolean.Input(
                        "pad_around",
                        default=True,
                        tooltip="On: leaves room around the picture, so that a face which fills "
                        "it is found.",
                    ),
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="The square picture.")],
            is_deprecated=True,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        crop_position: str = CropPosition.CENTER.value,
        sharpening: float = 0.0,
        pad_around: bool = True,
    ) -> io.NodeOutput:
        room, amount = _ROOM if pad_around else 0, number(sharpening, "sharpening")
        position = chosen(CropPosition, crop_position, "crop_position")
        square = prep_image(
            image, crop_position=position, sharpening=amount, size=_FACE_SIDE - 2 * room
        )
        return io.NodeOutput(functional.pad(square, (0, 0, room, room, room, room), value=1.0))


OF_2023: list[type[io.ComfyNode]] = [
    IPAdapterApply,
    IPAdapterApplyFaceID,
    IPAdapterApplyEncoded,
    IPAdapterBatchEmbeds,
    InsightFaceLoader,
    PrepImageForInsightFace,
]
