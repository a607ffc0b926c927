"""Seeing where each reference picture acted."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ..apply.request import chosen
from ..attention.maps import AttentionRecord, MapKind, overlay
from ..attention.weight_texts import number
from ..host.bases.install import record_attention
from ..host.preview import result_view
from ..pictures.images import as_rgb
from . import inputs

RecordWire = io.Custom("IPADAPTER_ATTENTION")
CATEGORY = "ipadapter/utils"
ALL_BLOCKS = ("input", "middle", "output")
BLOCKS = {"all": ALL_BLOCKS, **{name: (name,) for name in ALL_BLOCKS}}


class IPAdapterRecordAttention(io.ComfyNode):
    """Record maps while a MODEL samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterRecordAttention",
            display_name="IPAdapter Record Attention",
            category=CATEGORY,
            description="Records where each reference acts while the MODEL samples. Put it last "
            "before the sampler.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from an IPAdapter node."),
                io.Combo.Input(
                    "show",
                    options=[kind.value for kind in MapKind],
                    tooltip="effect: how much each picture changes a place. attention: which "
                    "picture a place looks at, for several pictures.",
                ),
                io.Combo.Input(
                    "blocks", options=list(BLOCKS), tooltip="Part of the model to look into."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="Sample with this one."),
                RecordWire.Output(
                    "record", display_name="record", tooltip="For IPAdapter Attention Map."
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, show: str, blocks: str) -> io.NodeOutput:
        inputs.check_choice(blocks, tuple(BLOCKS), "blocks")
        record = AttentionRecord(chosen(MapKind, show, "show"), BLOCKS[blocks])
        return io.NodeOutput(record_attention(model, record), record)


class IPAdapterAttentionMap(io.ComfyNode):
    """Maps as pictures and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterAttentionMap",
            display_name="IPAdapter Attention Map",
            category=CATEGORY,
            description="Shows where each reference acted, as colours over the result and as "
            "masks.",
            inputs=[
                RecordWire.Input("record", tooltip="From IPAdapter Record Attention."),
                io.Image.Input(
                    "image", tooltip="The picture that was sampled with the recorded MODEL."
                ),
                io.Float.Input(
                    "opacity",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the colours cover.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "overlay", display_name="overlay", tooltip="One picture per reference."
                ),
                io.Mask.Output(
                    "maps", display_name="maps", tooltip="One mask per reference, its peak at 1."
                ),
            ],
            hidden=[io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_given: Any) -> object:
        return float("nan")  # the record is refilled by every sampling

    @classmethod
    def execute(cls, record: AttentionRecord, image: Tensor, opacity: float) -> io.NodeOutput:
        picture, maps = as_rgb(image)[0], record.maps()
        size = (int(picture.shape[0]), int(picture.shape[1]))
        masks = functional.interpolate(maps.unsqueeze(1), size, mode="bilinear").squeeze(1)
        drawn = overlay(picture, maps, number(opacity, "opacity"))
        return io.NodeOutput(drawn, masks, ui=result_view(cls, drawn))


MAPS: list[type[io.ComfyNode]] = [IPAdapterRecordAttention, IPAdapterAttentionMap]
