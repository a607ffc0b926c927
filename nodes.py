"""The pack's nodes: the main ones, and the list of all. Other families are in ipadapter/nodes.

Each node is a schema and one call. Node ids, input names, their order and value strings are the de
facto ones, so that shared workflows run unchanged; they never change.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from comfy_api.latest import ComfyExtension, io

from .ipadapter.host import files
from .ipadapter.host.registry import has_server, unclaimed
from .ipadapter.host.request import Request, chosen
from .ipadapter.layers import WeightType
from .ipadapter.nodes import inputs
from .ipadapter.nodes.base import ApplyNode
from .ipadapter.nodes.callers import add_python_calls
from .ipadapter.nodes.embeds import EMBEDS
from .ipadapter.nodes.face import FACES
from .ipadapter.nodes.hooks import HOOKS
from .ipadapter.nodes.images import IMAGES
from .ipadapter.nodes.loaders import LOADERS
from .ipadapter.nodes.maps import MAPS
from .ipadapter.nodes.regional import REGIONAL
from .ipadapter.nodes.replaced import register_replacements
from .ipadapter.nodes.search import add_search_aliases
from .ipadapter.nodes.tiled import TILED
from .ipadapter.nodes.train import TRAINING
from .ipadapter.nodes.weights import WEIGHTS


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
            "IPAdapter",
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
            "IPAdapter Advanced",
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
        fixed = {"image": image_style, "weight": weight_style, "weight_type": kind.value}
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


NODES: list[type[io.ComfyNode]] = [
    *LOADERS,
    IPAdapter,
    IPAdapterAdvanced,
    IPAdapterBatch,
    IPAdapterStyleComposition,
    IPAdapterStyleCompositionBatch,
    IPAdapterPreciseStyleTransfer,
    IPAdapterPreciseStyleTransferBatch,
    IPAdapterPreciseComposition,
    IPAdapterPreciseCompositionBatch,
    *TILED,
    IPAdapterMS,
    *EMBEDS,
    *FACES,
    *REGIONAL,
    *HOOKS,
    *IMAGES,
    *WEIGHTS,
    *MAPS,
    *TRAINING,
]


class Pack(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def on_load(self) -> None:
        if has_server():  # the list of replacements is the server's
            await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return unclaimed(NODES)


async def comfy_entrypoint() -> Pack:
    """The host's entry point."""
    files.register_folders()
    add_search_aliases(NODES)
    add_python_calls(NODES)
    return Pack()
