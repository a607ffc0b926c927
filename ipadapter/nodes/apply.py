"""The Apply nodes that most graphs need: one prompt, in few or in many settings."""

from __future__ import annotations

from enum import Enum
from typing import Any

from comfy_api.latest import io

from ..apply.request import Request, chosen
from ..attention.weight_types import WeightType
from . import inputs
from .base import ApplyNode


class SimpleWeightType(str, Enum):
    """Widget strings of the simple node."""

    STANDARD = "standard"
    PROMPT = "prompt is more important"
    STYLE = "style transfer"


_SIMPLE = {
    SimpleWeightType.STANDARD: WeightType.LINEAR,
    SimpleWeightType.PROMPT: WeightType.EASE_OUT,
    SimpleWeightType.STYLE: WeightType.STYLE,
}


class IPAdapter(ApplyNode):
    """The few settings that matter most."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapter",
            "IPAdapter (Reference Picture)",
            "Uses a picture as a prompt. Connect IPAdapter Unified Loader, which brings the image "
            "encoder.",
            inputs.image(),
            inputs.weight(high=3.0),
            *inputs.start_end(),
            io.Combo.Input(
                "weight_type",
                options=[kind.value for kind in SimpleWeightType],
                tooltip="standard: everything. prompt is more important: text leads. style "
                "transfer: style only.",
            ),
            inputs.attn_mask(),
        )

    @classmethod
    def request(cls, weight_type: str = SimpleWeightType.STANDARD.value, **given: Any) -> Request:
        kind = _SIMPLE[chosen(SimpleWeightType, weight_type, "weight_type")]
        return Request(weight_type=kind.value, **given)


class IPAdapterAdvanced(ApplyNode):
    """Every setting."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapterAdvanced",
            "IPAdapter Advanced (Image Prompt)",
            "Uses one or more pictures as a prompt, with every setting.",
            inputs.image(),
            inputs.weight(),
            inputs.weight_type(),
            inputs.combine_embeds(),
            *inputs.start_end(),
            inputs.embeds_scaling(),
            *inputs.negative_mask_vision(),
            inputs.image_mask(),
        )


class IPAdapterBatch(ApplyNode):
    """Picture i for latent i."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapterBatch",
            "IPAdapter Batch (Adv.)",
            "Gives every latent of a batch its own picture and weight: animations, or many "
            "pictures at once.",
            inputs.image(
                tooltip="One picture per latent of the batch; the last one serves all later "
                "latents."
            ),
            inputs.weight(),
            inputs.weight_type(),
            *inputs.start_end(),
            inputs.embeds_scaling(),
            inputs.encode_batch_size(),
            *inputs.negative_mask_vision(),
        )


class IPAdapterMS(ApplyNode):
    """Every layer's strength by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapterMS",
            "IPAdapter Mad Scientist",
            "Sets the strength of every layer by hand.",
            inputs.image(),
            inputs.weight(),
            inputs.weight_faceidv2(),
            inputs.weight_type(),
            inputs.combine_embeds(),
            *inputs.start_end(),
            inputs.embeds_scaling(),
            io.String.Input(
                "layer_weights",
                default="",
                multiline=True,
                tooltip='Layer: strength, as in "3:2.5, 6:1". Others rest. Empty: weight_type.',
            ),
            *inputs.negative_mask_vision(),
            inputs.insightface(),
            category="ipadapter/dev",
        )


APPLY = [IPAdapter, IPAdapterAdvanced, IPAdapterBatch, IPAdapterMS]
