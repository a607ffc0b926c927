"""Nodes that were renamed in 2024: newer hosts open old files and prompts with the nodes of today.

Hosts without node replacement are left as they are. Only inputs that every old prompt has are
carried over: hosts fail on a mapping whose input is absent, so optional masks are to be connected
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy_api.latest as host_api
from comfy_api.latest import io


@dataclass(frozen=True)
class Renamed:
    """An old node: the new id, its widgets in order, new inputs by their old name, and values."""

    new: str
    widgets: tuple[str, ...]
    inputs: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_WEIGHT = ("weight", "noise", "weight_type", "start_at", "end_at")
_LINKS = _same("model", "ipadapter", "image", "clip_vision", "weight", "start_at", "end_at")
# The weight types of old, "original" above all, are today's "linear".
_APPLY = {"weight_type": "linear", "combine_embeds": "concat", "embeds_scaling": "V only"}

RENAMED: Mapping[str, Renamed] = {
    "IPAdapterApply": Renamed("IPAdapterAdvanced", (*_WEIGHT, "unfold_batch"), _LINKS, _APPLY),
    "IPAdapterApplyFaceID": Renamed(
        "IPAdapterFaceID",
        (*_WEIGHT, "faceid_v2", "weight_v2", "unfold_batch"),
        {**_LINKS, "insightface": "insightface", "weight_faceidv2": "weight_v2"},
        _APPLY,
    ),
    "IPAdapterApplyEncoded": Renamed(
        "IPAdapterEmbeds",
        ("weight", "weight_type", "start_at", "end_at", "unfold_batch"),
        {**_same("model", "ipadapter", "weight", "start_at", "end_at"), "pos_embed": "embeds"},
        {"weight_type": "linear", "embeds_scaling": "V only"},
    ),
    "IPAdapterBatchEmbeds": Renamed(
        "IPAdapterCombineEmbeds", (), _same("embed1", "embed2"), {"method": "concat"}
    ),
    "InsightFaceLoader": Renamed(
        "IPAdapterInsightFaceLoader", ("provider",), _same("provider"), {"model_name": "buffalo_l"}
    ),
    "PrepImageForInsightFace": Renamed(
        "PrepImageForClipVision",
        ("crop_position", "sharpening", "pad_around"),
        _same("image", "crop_position", "sharpening"),
        {"interpolation": "LANCZOS"},
    ),
}


async def register_replacements() -> None:
    """Tell the host which node took over from which, if it can use that."""
    if not hasattr(io, "NodeReplace"):
        return
    register = host_api.ComfyAPI().node_replacement.register  # pyright: ignore
    for old, renamed in RENAMED.items():
        await register(
            io.NodeReplace(  # pyright: ignore[reportAttributeAccessIssue]
                new_node_id=renamed.new,
                old_node_id=old,
                old_widget_ids=list(renamed.widgets),
                input_mapping=input_mapping(renamed),
                output_mapping=[{"new_idx": 0, "old_idx": 0}],
            )
        )


def input_mapping(renamed: Renamed) -> list[dict[str, Any]]:
    """How the host fills the new node's inputs."""
    carried = [{"new_id": new, "old_id": old} for new, old in renamed.inputs.items()]
    return carried + [{"new_id": new, "set_value": v} for new, v in renamed.values.items()]
