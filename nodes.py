"""The pack's nodes. Each translates a graph's inputs into one call of the core; other families are
in ipadapter/nodes."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from comfy_api.latest import ComfyExtension, io

from .ipadapter.folding import EmbedsScaling
from .ipadapter.host import files
from .ipadapter.host.apply import References, When, apply_prompt, image_prompt
from .ipadapter.host.payload import pipeline_of
from .ipadapter.layers import WeightType
from .ipadapter.nodes import inputs
from .ipadapter.nodes.images import IMAGES
from .ipadapter.nodes.weights import WEIGHTS
from .ipadapter.plan import Plan


class SimpleWeightType(str, Enum):
    """Widget strings of the simple node, and the weight types they stand for."""

    STANDARD = "standard"
    PROMPT = "prompt is more important"
    STYLE = "style transfer"

    @property
    def kind(self) -> WeightType:
        """The weight type of the advanced node."""
        return {
            SimpleWeightType.STANDARD: WeightType.LINEAR,
            SimpleWeightType.PROMPT: WeightType.EASE_OUT,
            SimpleWeightType.STYLE: WeightType.STYLE,
        }[self]


class IPAdapterModelLoader(io.ComfyNode):
    """Load an adapter file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterModelLoader",
            display_name="IPAdapter Model Loader",
            category="ipadapter/loaders",
            description="Loads an adapter file from models/ipadapter. Which kind it is is read "
            "from "
            ""
            "its content.",
            inputs=[
                io.Combo.Input(
                    "ipadapter_file",
                    options=files.adapter_names(),
                    tooltip="A file in models/ipadapter, for example "
                    "ip-adapter-plus_sd15.safetensors.",
                )
            ],
            outputs=[inputs.IPAdapterWire.Output(display_name="IPADAPTER")],
        )

    @classmethod
    def fingerprint_inputs(cls, ipadapter_file: str) -> object:
        return files.fingerprint(files.ADAPTERS, ipadapter_file)

    @classmethod
    def execute(cls, ipadapter_file: str) -> io.NodeOutput:
        return io.NodeOutput(files.load_adapter(ipadapter_file))


class IPAdapter(io.ComfyNode):
    """Apply an image prompt with the few settings that matter most."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapter",
            display_name="IPAdapter",
            category="ipadapter",
            description="Uses a picture as a prompt. Connect IPAdapter Unified Loader, which "
            "brings "
            ""
            "the image encoder.",
            inputs=[
                inputs.model(),
                inputs.ipadapter(),
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
            ],
            outputs=[inputs.patched_model()],
        )

    @classmethod
    def execute(
        cls, model, ipadapter, image, weight, start_at, end_at, weight_type, attn_mask=None
    ) -> io.NodeOutput:
        pipeline = pipeline_of(ipadapter)
        kind = inputs.chosen(SimpleWeightType, weight_type, "weight_type").kind
        prompt = image_prompt(pipeline, References(image))
        when = When(start_at, end_at, attn_mask)
        return io.NodeOutput(
            apply_prompt(model, pipeline.adapter, prompt, Plan((weight,), kind), when)
        )


class IPAdapterAdvanced(io.ComfyNode):
    """Apply an image prompt with every setting."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterAdvanced",
            display_name="IPAdapter Advanced",
            category="ipadapter",
            description="Uses one or more pictures as a prompt, with every setting.",
            inputs=[
                inputs.model(),
                inputs.ipadapter(),
                inputs.image(),
                inputs.weight(),
                inputs.weight_type(),
                inputs.combine_embeds(),
                *inputs.start_end(),
                inputs.embeds_scaling(),
                *inputs.negative_mask_vision(),
            ],
            outputs=[inputs.patched_model()],
        )

    @classmethod
    def execute(
        cls,
        model,
        ipadapter,
        image,
        weight,
        weight_type,
        combine_embeds,
        start_at,
        end_at,
        embeds_scaling,
        image_negative=None,
        attn_mask=None,
        clip_vision=None,
    ) -> io.NodeOutput:
        pipeline = pipeline_of(ipadapter)
        if clip_vision is not None:
            pipeline = replace(pipeline, clip_vision=clip_vision)
        plan = Plan(
            (weight,),
            inputs.chosen(WeightType, weight_type, "weight_type"),
            inputs.chosen(EmbedsScaling, embeds_scaling, "embeds_scaling"),
        )
        inputs.check_choice(combine_embeds, inputs.COMBINE_EMBEDS, "combine_embeds")
        prompt = image_prompt(pipeline, References(image, image_negative))
        when = When(start_at, end_at, attn_mask)
        return io.NodeOutput(apply_prompt(model, pipeline.adapter, prompt, plan, when))


class Pack(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [IPAdapterModelLoader, IPAdapter, IPAdapterAdvanced, *IMAGES, *WEIGHTS]


async def comfy_entrypoint() -> Pack:
    """The host's entry point."""
    files.register_folders()
    return Pack()
