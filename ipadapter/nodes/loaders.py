"""Nodes that open model files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention.weight_texts import whole_number
from ..host import loaders as files
from ..host.encoder_size import resized_encoder
from ..host.encoders import encoder_names, encoder_stamp, find_encoder, load_encoder
from ..host.loaders import LoadedPreset, diagnose, load_preset
from ..library.presets import COMMUNITY_PRESETS, FACEID_PRESETS, UNIFIED_PRESETS
from . import inputs

CATEGORY = "ipadapter/loaders"


class IPAdapterModelLoader(io.ComfyNode):
    """Load an adapter file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterModelLoader",
            display_name="IPAdapter Model Loader",
            category=CATEGORY,
            description="Loads an adapter file from models/ipadapter. Which kind it is is read "
            "from its content.",
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
        adapter = files.load_adapter(ipadapter_file)
        return io.NodeOutput(adapter, ui={"text": files.described(adapter, ipadapter_file)})


def preset_input(presets: tuple[str, ...]) -> io.Input:
    return io.Combo.Input(
        "preset",
        options=list(presets),
        tooltip="Which adapter to use. The files are found by their content.",
    )


def loader_outputs(model_name: str = "model") -> list[io.Output]:
    return [
        io.Model.Output(display_name=model_name, tooltip="The MODEL, ready for the Apply node."),
        inputs.IPAdapterWire.Output(
            display_name="ipadapter", tooltip="Adapter and encoder together."
        ),
    ]


def loader_result(loaded: LoadedPreset) -> io.NodeOutput:
    return io.NodeOutput(loaded.model, loaded.pipeline, ui={"text": list(loaded.notes)})


class IPAdapterUnifiedLoader(io.ComfyNode):
    """Adapter and encoder by preset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._unified(
            "IPAdapterUnifiedLoader", "IPAdapter Unified Loader", UNIFIED_PRESETS, "ipadapter"
        )

    @classmethod
    def _unified(
        cls, node_id: str, name: str, presets: tuple[str, ...], category: str
    ) -> io.Schema:
        return io.Schema(
            node_id=node_id,
            display_name=name,
            category=category,
            description="Finds the adapter and its image encoder for your checkpoint, whatever the "
            "files are called.",
            inputs=[inputs.plain_model(), preset_input(presets), inputs.ipadapter(optional=True)],
            outputs=loader_outputs(),
        )

    @classmethod
    def execute(cls, model: Any, preset: str, **_chained: Any) -> io.NodeOutput:
        # What a loader before this one opened is shared by itself: nothing to take over from it.
        return loader_result(load_preset(model, preset))


class IPAdapterUnifiedLoaderCommunity(IPAdapterUnifiedLoader):
    """Adapters of the community by preset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._unified(
            "IPAdapterUnifiedLoaderCommunity",
            "IPAdapter Unified Loader Community",
            COMMUNITY_PRESETS,
            CATEGORY,
        )


class IPAdapterImageEncoderLoader(io.ComfyNode):
    """Image encoders of any size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterImageEncoderLoader",
            display_name="IPAdapter Image Encoder Loader",
            category=CATEGORY,
            description="Loads an image encoder of any size: a file, or a Hugging Face folder with "
            "its config.json.",
            inputs=[
                io.Combo.Input(
                    "clip_vision_name",
                    options=encoder_names(),
                    tooltip="A file or folder in models/clip_vision.",
                )
            ],
            outputs=[io.ClipVision.Output(display_name="CLIP_VISION")],
        )

    @classmethod
    def fingerprint_inputs(cls, clip_vision_name: str) -> object:
        return encoder_stamp(find_encoder(clip_vision_name))

    @classmethod
    def execute(cls, clip_vision_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_encoder(find_encoder(clip_vision_name)))


class IPAdapterImageEncoderSize(io.ComfyNode):
    """Encoders for pictures larger or smaller than theirs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterImageEncoderSize",
            display_name="IPAdapter Image Encoder Size",
            category=CATEGORY,
            description="Makes an image encoder take pictures of another size, for adapters that "
            "were trained so, such as the 448 px ones for NoobAI.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="The image encoder. It stays as it is."),
                io.Int.Input(
                    "size",
                    default=448,
                    min=14,
                    max=2048,
                    step=2,
                    tooltip="Side of the pictures in pixels, a multiple of the encoder's patches: "
                    "14 for most. Use the size that the adapter was trained with.",
                ),
            ],
            outputs=[
                io.ClipVision.Output(
                    display_name="CLIP_VISION",
                    tooltip="The same encoder for pictures of this size.",
                )
            ],
        )

    @classmethod
    def execute(cls, clip_vision: Any, size: int) -> io.NodeOutput:
        return io.NodeOutput(resized_encoder(clip_vision, whole_number(size, "size")))


class IPAdapterDoctor(io.ComfyNode):
    """What fits what, in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        presets = [ANY_PRESET, *UNIFIED_PRESETS, *FACEID_PRESETS, *COMMUNITY_PRESETS]
        return io.Schema(
            node_id="IPAdapterDoctor",
            display_name="IPAdapter Doctor",
            category="ipadapter/utils",
            description="Says which of your files fit your checkpoint, which do not and why, and "
            "what to download.",
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Your checkpoint. Without one: all files, and what to download.",
                ),
                io.Combo.Input(
                    "preset", options=presets, tooltip="Check what this preset would load."
                ),
                inputs.ipadapter(optional=True),
                inputs.clip_vision(),
            ],
            outputs=[io.String.Output("report", display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_given: Any) -> object:
        return float("nan")  # folders may have changed

    @classmethod
    def execute(
        cls, preset: str, model: Any = None, ipadapter: Any = None, clip_vision: Any = None
    ) -> io.NodeOutput:
        text = diagnose(model, ipadapter, clip_vision, "" if preset == ANY_PRESET else preset)
        return io.NodeOutput(text, ui={"text": [text]})


ANY_PRESET = "any"

LOADERS: list[type[io.ComfyNode]] = [
    IPAdapterModelLoader,
    IPAdapterUnifiedLoader,
    IPAdapterUnifiedLoaderCommunity,
    IPAdapterImageEncoderLoader,
    IPAdapterImageEncoderSize,
    IPAdapterDoctor,
]
