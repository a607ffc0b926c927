"""Style, composition, or one of each: the Apply nodes that treat layers by what they carry."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..apply.request import Request
from ..attention.weight_texts import numbers
from ..attention.weight_types import WeightType
from . import inputs
from .base import ApplyNode

_STYLE_IMAGE = "Picture whose colours, light and technique are used."
_COMPOSITION_IMAGE = "Picture whose layout is used."
_STYLE_WEIGHT = (
    "Strength of image_style in the style layers: 6 on SDXL, 0 to 3 and 9 to 15 on SD1.5. 0: no "
    "style. Typical: 1.0."
)
_COMPOSITION_WEIGHT = (
    "Strength of image_composition in the composition layers: 3 on SDXL, 5 and weakly 4 on SD1.5. "
    "0: no layout. Typical: 0.5 to 1.0."
)


class IPAdapterStyleComposition(ApplyNode):
    """One picture for the style, another for the composition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapterStyleComposition",
            "IPAdapter Style & Composition SDXL",
            "Takes the style of one picture and the composition of another. Made for SDXL; SD1.5 "
            "works too.",
            *cls._pictures(),
            inputs.combine_embeds("average"),
            *cls._settings(),
            category="ipadapter/style_composition",
        )

    @classmethod
    def _pictures(cls) -> list[io.Input]:
        return [
            inputs.image("image_style", _STYLE_IMAGE),
            inputs.image("image_composition", _COMPOSITION_IMAGE),
            inputs.weight("weight_style", tooltip=_STYLE_WEIGHT),
            inputs.weight("weight_composition", tooltip=_COMPOSITION_WEIGHT),
            io.Boolean.Input(
                "expand_style",
                default=False,
                tooltip="On: the style acts in all layers but the composition's. Stronger, less "
                "precise.",
            ),
        ]

    @classmethod
    def _settings(cls) -> list[io.Input]:
        return [*inputs.start_end(), inputs.embeds_scaling(), *inputs.negative_mask_vision()]

    @classmethod
    def request(
        cls,
        image_style: Any = None,
        weight_style: float = 1.0,
        expand_style: bool = False,
        **given: Any,
    ) -> Request:
        kind = (
            WeightType.STRONG_STYLE_AND_COMPOSITION
            if expand_style
            else WeightType.STYLE_AND_COMPOSITION
        )
        weights = numbers(weight_style, "weight_style")
        fixed = {"image": image_style, "weight": weights, "weight_type": kind.value}
        return Request(**{**given, **fixed}, per_item=cls.PER_ITEM)


class IPAdapterStyleCompositionBatch(IPAdapterStyleComposition):
    """Style and composition for every latent."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapterStyleCompositionBatch",
            "IPAdapter Style & Composition Batch SDXL",
            "Style & Composition with a pair of pictures for every latent of a batch.",
            *cls._pictures(),
            *cls._settings(),
            category="ipadapter/style_composition",
        )


def _boost(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=-5.0, max=5.0, step=0.05, tooltip=tooltip)


_STYLE_BOOST = "How hard the result is pushed away from the picture's composition. 0: not at all."
_COMPOSITION_BOOST = "How hard the result is pushed away from the picture's style. 0: not at all."


class IPAdapterPreciseStyleTransfer(ApplyNode):
    """Style only, with the composition pushed out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._precise(
            "IPAdapterPreciseStyleTransfer",
            "IPAdapter Precise Style Transfer",
            "Style transfer that lets less of the picture's composition through.",
            _boost("style_boost", 1.0, _STYLE_BOOST),
        )

    @classmethod
    def _precise(cls, node_id: str, name: str, description: str, boost: io.Input) -> io.Schema:
        return cls.schema(
            node_id,
            name,
            description,
            inputs.image(),
            inputs.weight(),
            boost,
            inputs.combine_embeds(),
            *inputs.start_end(),
            inputs.embeds_scaling(),
            *inputs.negative_mask_vision(),
        )


class IPAdapterPreciseStyleTransferBatch(IPAdapterPreciseStyleTransfer):
    """Precise style transfer for every latent."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._precise(
            "IPAdapterPreciseStyleTransferBatch",
            "IPAdapter Precise Style Transfer Batch",
            "Precise style transfer with a picture for every latent of a batch.",
            _boost("style_boost", 1.0, _STYLE_BOOST),
        )


class IPAdapterPreciseComposition(IPAdapterPreciseStyleTransfer):
    """Composition only, with the style pushed out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._precise(
            "IPAdapterPreciseComposition",
            "IPAdapter Precise Composition",
            "Composition transfer that lets less of the picture's style through.",
            _boost("composition_boost", 0.0, _COMPOSITION_BOOST),
        )


class IPAdapterPreciseCompositionBatch(IPAdapterPreciseStyleTransfer):
    """Precise composition for every latent."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._precise(
            "IPAdapterPreciseCompositionBatch",
            "IPAdapter Precise Composition Batch",
            "Precise composition with a picture for every latent of a batch.",
            _boost("composition_boost", 0.0, _COMPOSITION_BOOST),
        )


STYLE = [
    IPAdapterStyleComposition,
    IPAdapterStyleCompositionBatch,
    IPAdapterPreciseStyleTransfer,
    IPAdapterPreciseStyleTransferBatch,
    IPAdapterPreciseComposition,
    IPAdapterPreciseCompositionBatch,
]
