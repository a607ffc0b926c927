"""Regions: a picture, its mask and its prompt together, then all regions onto one MODEL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import node_helpers
from comfy_api.latest import io
from torch import Tensor

from ..apply.request import Request
from ..attention.weight_texts import number, numbers
from ..errors import Problem
from ..host.apply import run
from ..host.preview import encoder_view
from . import inputs
from .base import ApplyNode

ParamsWire = io.Custom("IPADAPTER_PARAMS")


@dataclass(frozen=True, eq=False)
class Region:
    """One picture and where, when and how strongly it acts; field names are a Request's."""

    image: Any
    attn_mask: Any
    weight: float | list[float]
    weight_type: str
    start_at: float
    end_at: float


_FIELDS = [field.name for field in fields(Region)]


def as_params(regions: Iterable[Region]) -> dict[str, list[Any]]:
    """The IPADAPTER_PARAMS payload that nodes of other packs read too: a list per setting."""
    rows = list(regions)
    return {name: [getattr(region, name) for region in rows] for name in _FIELDS}


def regions_of(params: Any) -> tuple[Region, ...]:
    """The regions of an IPADAPTER_PARAMS payload, whoever made it."""
    if not isinstance(params, dict) or not set(_FIELDS) <= params.keys():
        raise Problem.WRONG_INPUT(
            f"ipadapter_params received a {type(params).__name__}: expected the output of "
            "IPAdapter Regional Conditioning or IPAdapter Combine Params."
        )
    rows = zip(*(params[name] for name in _FIELDS), strict=True)
    return tuple(Region(*row) for row in rows)


class IPAdapterRegionalConditioning(io.ComfyNode):
    """One region: picture, mask, prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterRegionalConditioning",
            display_name="IPAdapter Regional Conditioning",
            category="ipadapter/params",
            description="One region of the picture: a reference and a prompt that both act inside "
            "a mask.",
            inputs=[
                inputs.image(),
                inputs.weight("image_weight", high=3.0),
                io.Float.Input(
                    "prompt_weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the text prompts inside the mask.",
                ),
                inputs.weight_type(),
                *inputs.start_end(),
                io.Mask.Input("mask", optional=True, tooltip="The region: white on, black off."),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="What to show in the region."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What to avoid in the region."
                ),
            ],
            outputs=[
                ParamsWire.Output(display_name="IPADAPTER_PARAMS"),
                io.Conditioning.Output("POSITIVE", display_name="POSITIVE"),
                io.Conditioning.Output("NEGATIVE", display_name="NEGATIVE"),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        image_weight: float,
        prompt_weight: float,
        weight_type: str,
        start_at: float,
        end_at: float,
        mask: Tensor | None = None,
        positive: Any = None,
        negative: Any = None,
    ) -> io.NodeOutput:
        weights = numbers(image_weight, "image_weight")
        region = Region(
            image,
            mask,
            weights[0] if len(weights) == 1 else list(weights),
            weight_type,
            number(start_at, "start_at"),
            number(end_at, "end_at"),
        )
        strength = number(prompt_weight, "prompt_weight")
        prompts = (masked(prompt, mask, strength) for prompt in (positive, negative))
        return io.NodeOutput(as_params([region]), *prompts)


def masked(prompt: Any, mask: Any, strength: float) -> Any:
    """A CONDITIONING confined to a mask, as the host's own Conditioning (Set Mask) does it."""
    if prompt is None:
        return []
    if mask is None:
        return prompt
    mask = mask.unsqueeze(0) if mask.ndim < 3 else mask
    values = {"mask": mask, "set_area_to_bounds": False, "mask_strength": strength}
    return node_helpers.conditioning_set_values(prompt, values)


class IPAdapterCombineParams(io.ComfyNode):
    """Several regions on one wire."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [f"params_{number}" for number in range(1, 6)]
        return io.Schema(
            node_id="IPAdapterCombineParams",
            display_name="IPAdapter Combine Params",
            category="ipadapter/params",
            description="Puts up to five regions on one wire.",
            inputs=[
                ParamsWire.Input(name, optional=name > "params_2", tooltip="One or more regions.")
                for name in names
            ],
            outputs=[ParamsWire.Output(display_name="IPADAPTER_PARAMS")],
        )

    @classmethod
    def execute(cls, **params: Any) -> io.NodeOutput:
        given = [params[name] for name in sorted(params) if params[name] is not None]
        regions = (region for item in given for region in regions_of(item))
        return io.NodeOutput(as_params(regions))


class IPAdapterFromParams(ApplyNode):
    """Apply all regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            "IPAdapterFromParams",
            "IPAdapter from Params",
            "Applies every region that IPAdapter Regional Conditioning described.",
            ParamsWire.Input(
                "ipadapter_params", tooltip="From Regional Conditioning or Combine Params."
            ),
            inputs.combine_embeds(),
            inputs.embeds_scaling(),
            inputs.image_negative(),
            inputs.clip_vision(),
            category="ipadapter/params",
        )

    @classmethod
    def execute(cls, model: Any, ipadapter_params: Any, **given: Any) -> io.NodeOutput:
        regions = regions_of(ipadapter_params)
        for region in regions:
            model = run(replace(Request(model, **given), **vars(region)))
        pictures = {f"region {number}": r.image for number, r in enumerate(regions, 1)}
        return io.NodeOutput(model, ui=encoder_view(cls, Request(model, **given), pictures))


REGIONAL: list[type[io.ComfyNode]] = [
    IPAdapterRegionalConditioning,
    IPAdapterCombineParams,
    IPAdapterFromParams,
]
