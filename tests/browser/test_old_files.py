"""Workflow files of 2023 and of the V2 fork in today's editor: nothing is missing, and values and
wires reach the inputs that they were saved for."""

from __future__ import annotations

from typing import Any

import pytest

WIRES = {
    "ipadapter": "IPADAPTER",
    "clip_vision": "CLIP_VISION",
    "insightface": "INSIGHTFACE",
    "image": "IMAGE",
    "model": "MODEL",
    "attn_mask": "MASK",
}
SOURCES = {
    "IPADAPTER": "IPAdapterModelLoader",
    "CLIP_VISION": "CLIPVisionLoader",
    "INSIGHTFACE": "InsightFaceLoader",
    "IMAGE": "EmptyImage",
    "MODEL": "CheckpointLoaderSimple",
    "MASK": "SolidMask",
    "EMBEDS": "IPAdapterLoadEmbeds",
}
# By node: its sockets in the order of the files of its time, and its widgets.
OLD: dict[str, tuple[list[str], dict[str, Any]]] = {
    "IPAdapterApply": (
        ["ipadapter", "clip_vision", "image", "model", "attn_mask"],
        {
            **{"weight": 0.7, "noise": 0.3, "weight_type": "channel penalty"},
            **{"start_at": 0.1, "end_at": 0.9, "unfold_batch": True},
        },
    ),
    "IPAdapterApplyFaceID": (
        ["ipadapter", "clip_vision", "insightface", "image", "model", "attn_mask"],
        {
            **{"weight": 0.9, "noise": 0.2, "weight_type": "linear", "start_at": 0.1},
            **{"end_at": 0.8, "faceid_v2": True, "weight_v2": 0.65, "unfold_batch": True},
        },
    ),
    "IPAdapterApplyEncoded": (
        ["ipadapter", "embeds", "model", "attn_mask"],
        {
            **{"weight": 0.9, "weight_type": "linear", "start_at": 0.1, "end_at": 0.8},
            "unfold_batch": True,
        },
    ),
    "IPAdapterAdvancedV2": (
        ["model", "ipadapter", "image", "clip_vision"],
        {
            **{"weight": 0.7, "weight_type": "ease in", "combine_embeds": "average"},
            **{"start_at": 0.1, "end_at": 0.8, "embeds_scaling": "K+V"},
        },
    ),
}


def saved(kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A file with one such node and what its sockets are linked to; and the sources' ids."""
    sockets, values = OLD[kind]
    types = {name: WIRES.get(name, "EMBEDS") for name in sockets}
    ids = {name: number for number, name in enumerate(sockets, start=2)}
    nodes = [
        {
            **{"id": ids[name], "type": SOURCES[types[name]], "pos": [0, 150 * ids[name]]},
            "outputs": [{"name": types[name], "type": types[name], "links": [ids[name]]}],
        }
        for name in sockets
    ]
    entries = [{"name": name, "type": types[name], "link": ids[name]} for name in sockets]
    mine = {"id": 1, "type": kind, "pos": [500, 0], "inputs": entries}
    outputs = [{"name": "MODEL", "type": "MODEL", "links": []}]
    nodes.append({**mine, "outputs": outputs, "widgets_values": list(values.values())})
    for node in nodes:
        node |= {"size": [300, 120], "flags": {}, "mode": 0, "properties": {}}
    links = [[ids[n], ids[n], 0, 1, slot, types[n]] for slot, n in enumerate(sockets)]
    size = {"last_node_id": len(nodes), "last_link_id": len(nodes)}
    workflow = {**size, "nodes": nodes, "links": links, "groups": [], "config": {}, "version": 0.4}
    return workflow, {name: str(number) for name, number in ids.items()}


@pytest.mark.parametrize("kind", OLD)
def test_values_and_wires_are_where_they_were(page: Any, kind: str) -> None:
    workflow, sources = saved(kind)
    page.load(workflow)
    expected = {**OLD[kind][1], **{name: [source, 0] for name, source in sources.items()}}
    assert page.prompt()["1"]["inputs"] == expected
    assert page.problems() == []
