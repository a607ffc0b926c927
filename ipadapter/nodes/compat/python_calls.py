"""Calls from Python: other packs and exported scripts call these node classes directly, as
in `NODE_CLASS_MAPPINGS["IPAdapterAdvanced"]().apply_ipadapter(model, ipadapter, ...)`.

Method names, argument order and the number of results are those that the callers use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from comfy_api.latest import io

from ...apply.request import Request
from ...pictures.embeds import ImageEmbeds
from .old_prompts import default_of

_ADVANCED = (
    "model",
    "ipadapter",
    "start_at",
    "end_at",
    "weight",
    "weight_style",
    "weight_composition",
    "expand_style",
    "weight_type",
    "combine_embeds",
    "weight_faceidv2",
    "image",
    "image_style",
    "image_composition",
    "image_negative",
    "clip_vision",
    "attn_mask",
    "insightface",
    "embeds_scaling",
    "layer_weights",
    "ipadapter_params",
    "encode_batch_size",
    "style_boost",
    "composition_boost",
    "enhance_tiles",
    "enhance_ratio",
    "weight_kolors",
)
# Settings that callers give to all nodes, whichever have them; the last four are of 2023.
_LEFT_OUT = {*_ADVANCED, "noise", "unfold_batch", "faceid_v2", "weight_v2"}
_REQUEST = {field.name for field in fields(Request)} | {"style_boost", "composition_boost"}


@dataclass(frozen=True)
class PythonCall:
    """How callers name a node's method, order its arguments, and how many results they unpack."""

    method: str
    positional: tuple[str, ...]
    results: int = 0


_SIMPLE = ("model", "ipadapter", "image", "weight", "start_at", "end_at", "weight_type")
_TILED = ("model", "ipadapter", "image", "weight", "weight_type", "start_at", "end_at")
_EMBEDS = ("model", "ipadapter", "pos_embed", "weight", "weight_type", "start_at", "end_at")
_OLD = ("ipadapter", "model", "weight", "clip_vision", "image")
_LOAD = PythonCall("load_models", ("model", "preset", "lora_strength", "provider", "ipadapter"))
# All other nodes with a `model` and an `ipadapter` input take the long list.
_APPLY = PythonCall("apply_ipadapter", _ADVANCED, 2)

CALLS: Mapping[str, PythonCall] = {
    "InsightFaceLoader": PythonCall("load_insight_face", ("provider",)),
    "IPAdapter": PythonCall("apply_ipadapter", (*_SIMPLE, "attn_mask"), 2),
    "IPAdapterApply": PythonCall("apply_ipadapter", _OLD),
    "IPAdapterApplyEncoded": PythonCall("apply_ipadapter", _OLD),
    "IPAdapterApplyFaceID": PythonCall("apply_ipadapter", _OLD),
    "IPAdapterBatchEmbeds": PythonCall("batch", ("embed1", "embed2")),
    "IPAdapterCombineEmbeds": PythonCall("batch", ("embed1", "method")),
    "IPAdapterEmbeds": PythonCall(
        "apply_ipadapter", (*_EMBEDS, "neg_embed", "attn_mask", "clip_vision", "embeds_scaling"), 2
    ),
    "IPAdapterEncoder": PythonCall(
        "encode", ("ipadapter", "image", "weight", "mask", "clip_vision")
    ),
    "IPAdapterInsightFaceLoader": PythonCall("load_insightface", ("provider", "model_name")),
    "IPAdapterModelLoader": PythonCall("load_ipadapter_model", ("ipadapter_file",)),
    "IPAdapterRegionalConditioning": PythonCall(
        "conditioning",
        ("image", "image_weight", "prompt_weight", "weight_type", "start_at", "end_at"),
    ),
    "IPAdapterTiled": PythonCall("apply_tiled", _TILED),
    "IPAdapterTiledBatch": PythonCall("apply_tiled", _TILED),
    "IPAdapterUnifiedLoader": _LOAD,
    "IPAdapterUnifiedLoaderCommunity": _LOAD,
    "IPAdapterUnifiedLoaderFaceID": _LOAD,
    "PrepImageForClipVision": PythonCall(
        "prep_image", ("image", "interpolation", "crop_position", "sharpening")
    ),
    "PrepImageForInsightFace": PythonCall(
        "prep_image", ("image", "crop_position", "sharpening", "pad_around")
    ),
}
# Callers reach these nodes through IPAdapterAdvanced too, by giving this argument.
_ROUTES = {"image_style": "IPAdapterStyleComposition", "ipadapter_params": "IPAdapterFromParams"}

_Nodes = Mapping[str, type[io.ComfyNode]]


def add_python_calls(classes: Iterable[type[io.ComfyNode]]) -> None:
    """Give node classes the methods that callers know, without touching their schemas."""
    nodes = {node.GET_SCHEMA().node_id: node for node in classes}
    for node_id, node in nodes.items():
        call = CALLS.get(node_id) or (_APPLY if {"model", "ipadapter"} <= _inputs(node) else None)
        if call is not None:
            setattr(node, call.method, _method(call, nodes))


def _method(call: PythonCall, nodes: _Nodes) -> classmethod:
    def run(cls: type[io.ComfyNode], *values: Any, **given: Any) -> tuple[Any, ...]:
        given |= zip(call.positional, values, strict=False)
        given = {name: value for name, value in given.items() if value is not None}
        node = next((nodes[_ROUTES[name]] for name in _ROUTES if name in given), cls)
        results = [_bare(result) for result in node.execute(**_accepted(node, given)).args]
        return tuple(results + [None] * (call.results - len(results)))

    return classmethod(run)


def _accepted(node: type[io.ComfyNode], given: Mapping[str, Any]) -> dict[str, Any]:
    """The node's inputs: what is given, else the schema's defaults. Settings that only other
    Apply nodes have are left out, as callers give all of them to all nodes."""
    inputs = _inputs(node)
    known = inputs | _REQUEST if "ipadapter" in inputs else inputs
    if unknown := given.keys() - known - _LEFT_OUT:
        raise TypeError(f"{node.__name__} has no input {', '.join(sorted(unknown))}.")
    return _defaults(node) | {name: value for name, value in given.items() if name in known}


def _inputs(node: type[io.ComfyNode]) -> set[str]:
    return {given.id for given in node.GET_SCHEMA().inputs}


def _defaults(node: type[io.ComfyNode]) -> dict[str, Any]:
    values = {}
    for given in node.GET_SCHEMA().inputs:
        default = default_of(given)
        if default is not None:
            values[given.id] = default
    return values


def _bare(result: Any) -> Any:
    """Callers treat embeds as tensors, and stack and average them."""
    if not isinstance(result, ImageEmbeds):
        return result
    tensors = list(result.tensors().values())
    return tensors[0] if len(tensors) == 1 else result
