"""Encoding pictures once: to mix, to keep in a file, to use on several models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..apply.request import Request, chosen
from ..attention.weight_texts import number
from ..errors import Problem
from ..files.paths import inside
from ..host.encode import read_nothing, read_reference
from ..host.preview import request_view
from ..pictures.embeds import (
    CombineMethod,
    as_image_embeds,
    combine_image_embeds,
    is_embeds_file,
    load_embeds,
    save_embeds,
)
from . import inputs
from .base import ABSENT, ApplyNode

EmbedsWire = io.Custom("EMBEDS")
CATEGORY = "ipadapter/embeds"


class IPAdapterEncoder(io.ComfyNode):
    """Pictures to embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterEncoder",
            display_name="IPAdapter Encoder",
            category=CATEGORY,
            description="Encodes pictures for an adapter without applying them, to mix or save "
            "them.",
            inputs=[
                inputs.ipadapter(),
                inputs.image(),
                inputs.weight(high=3.0, step=0.01),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Part of the picture to read: white is read, black is left out.",
                ),
                inputs.clip_vision(),
            ],
            outputs=[
                EmbedsWire.Output("pos_embed", display_name="pos_embed"),
                EmbedsWire.Output("neg_embed", display_name="neg_embed"),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, image_1: Any = ABSENT) -> bool | str:
        return image_1 is ABSENT or (
            "This node is of 2023, when it took image_1 to image_4. Connect ipadapter and image; "
            "for several pictures use a node each, and join them with IPAdapter Combine Embeds."
        )

    @classmethod
    def execute(
        cls,
        ipadapter: Any,
        image: Tensor,
        weight: float,
        mask: Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        weight = number(weight, "weight")
        request = Request(None, ipadapter, image, image_mask=mask, clip_vision=clip_vision)
        positive = read_reference(request.reading, image, mask, "mask")
        negative = read_nothing(request.loaded, positive)
        weighted = replace(positive.map(lambda tensor: tensor * weight), weight=weight)
        return io.NodeOutput(weighted, negative, ui=request_view(cls, request))


class IPAdapterCombineEmbeds(io.ComfyNode):
    """Up to five embeds into one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterCombineEmbeds",
            display_name="IPAdapter Combine Embeds",
            category=CATEGORY,
            description="Mixes up to five embeds into one.",
            inputs=[
                EmbedsWire.Input("embed1", tooltip="From IPAdapter Encoder or Load Embeds."),
                io.Combo.Input(
                    "method",
                    options=[method.value for method in CombineMethod],
                    tooltip="concat keeps all; average mixes; subtract takes the others from the "
                    "first.",
                ),
                *(
                    EmbedsWire.Input(
                        f"embed{number}", optional=True, tooltip="Another picture's embeds."
                    )
                    for number in range(2, 6)
                ),
            ],
            outputs=[EmbedsWire.Output(display_name="EMBEDS")],
        )

    @classmethod
    def execute(cls, method: str, **embeds: Any) -> io.NodeOutput:
        names = sorted(name for name, value in embeds.items() if value is not None)
        given = [as_image_embeds(embeds[name], name) for name in names]
        how = chosen(CombineMethod, method, "method")
        return io.NodeOutput(combine_image_embeds(given, how, names))


class IPAdapterSaveEmbeds(io.ComfyNode):
    """Keep embeds in a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterSaveEmbeds",
            display_name="IPAdapter Save Embeds",
            category=CATEGORY,
            description="Saves embeds in the input folder, where IPAdapter Load Embeds lists them.",
            inputs=[
                EmbedsWire.Input("embeds", tooltip="From IPAdapter Encoder or Combine Embeds."),
                io.String.Input(
                    "filename_prefix",
                    default="IP_embeds",
                    tooltip="Start of the file's name; a number follows. Folders below input are "
                    "allowed.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, embeds: Any, filename_prefix: str) -> io.NodeOutput:
        folder = Path(folder_paths.get_input_directory())
        path = save_embeds(as_image_embeds(embeds), inside(folder, filename_prefix))
        return io.NodeOutput(ui={"text": [path.relative_to(folder.resolve()).as_posix()]})


def embeds_files() -> list[str]:
    """Embeds files in the input folder and below."""
    folder = folder_paths.get_input_directory()
    names, _ = folder_paths.recursive_search(folder, excluded_dir_names=[])
    return sorted(name for name in names if is_embeds_file(name))


class IPAdapterLoadEmbeds(io.ComfyNode):
    """Take embeds from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterLoadEmbeds",
            display_name="IPAdapter Load Embeds",
            category=CATEGORY,
            description="Loads embeds that were saved. Needs neither the picture nor an image "
            "encoder.",
            inputs=[
                io.Combo.Input(
                    "embeds", options=embeds_files(), tooltip="A file in the input folder."
                )
            ],
            outputs=[EmbedsWire.Output(display_name="EMBEDS")],
        )

    @classmethod
    def fingerprint_inputs(cls, embeds: str) -> object:
        stat = cls._path(embeds).stat()
        return stat.st_size, stat.st_mtime_ns

    @classmethod
    def execute(cls, embeds: str) -> io.NodeOutput:
        return io.NodeOutput(load_embeds(cls._path(embeds)))

    @classmethod
    def _path(cls, name: str) -> Path:
        folder = Path(folder_paths.get_input_directory())
        path = inside(folder, name)
        if not (is_embeds_file(name) and path.is_file()):
            raise Problem.FILE_MISSING(
                f"{name} is not an embeds file in {folder}. Save one with IPAdapter Save Embeds, "
                f"or put it there.",
                FileNotFoundError,
            )
        return path


class IPAdapterEmbeds(ApplyNode):
    """Apply embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._embeds(
            "IPAdapterEmbeds", "IPAdapter Embeds", "Uses encoded pictures as a prompt."
        )

    @classmethod
    def _embeds(cls, node_id: str, name: str, description: str) -> io.Schema:
        return cls.schema(
            node_id,
            name,
            description,
            EmbedsWire.Input(
                "pos_embed", tooltip="What to show: from IPAdapter Encoder or Load Embeds."
            ),
            inputs.weight(high=3.0),
            inputs.weight_type(),
            *inputs.start_end(),
            inputs.embeds_scaling(),
            EmbedsWire.Input("neg_embed", optional=True, tooltip="What to move away from."),
            inputs.attn_mask(),
            inputs.clip_vision(),
            category=CATEGORY,
        )


class IPAdapterEmbedsBatch(IPAdapterEmbeds):
    """Embeds i for latent i."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._embeds(
            "IPAdapterEmbedsBatch",
            "IPAdapter Embeds Batch",
            "Gives every latent of a batch its own encoded picture.",
        )


EMBEDS: list[type[io.ComfyNode]] = [
    IPAdapterEncoder,
    IPAdapterCombineEmbeds,
    IPAdapterSaveEmbeds,
    IPAdapterLoadEmbeds,
    IPAdapterEmbeds,
    IPAdapterEmbedsBatch,
]
