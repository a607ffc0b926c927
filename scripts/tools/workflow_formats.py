"""Graphs as files and prompts: the editor's format with a layout, and the API's.

What a graph leaves out comes from the server's /object_info.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .comfy_server import ServerError
from .graph import Graph, Link, Node
from .layout import GAP, MARGIN, SECTIONS, TITLE, WIDTH, Section, layout
from .pack import pack_module

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")  # nodes that only the editor knows
ROW = 24
SHOWN = {"IPAdapterDoctor": 280, "IPAdapterAttentionMap": 280, "IPAdapterTrain": 200}
Info = Mapping[str, Any]


def write(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with a node or a link on every line."""
    parts = [f"{json.dumps(key)}: {_lines(item)}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"


def api_format(graph: Graph, info: Info) -> dict[str, Any]:
    """A graph as POST /prompt takes it."""
    return {
        str(node.number): {
            "class_type": node.kind,
            "inputs": {
                name: _api_value(value, graph, info) for name, value in _all_inputs(node, info)
            },
        }
        for node in graph.nodes
    }


def to_api(workflow: Mapping[str, Any], info: Info) -> dict[str, Any]:
    """A workflow as the editor saves it, as POST /prompt takes it."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            if node["type"] not in info:
                raise ServerError(f"the server has no node {node['type']}; its log says why")
            inputs = _read_widgets(node, info)
            linked = (slot for slot in node.get("inputs", ()) if slot.get("link") is not None)
            inputs.update({slot["name"]: links[slot["link"]] for slot in linked})
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def _read_widgets(node: Mapping[str, Any], info: Info) -> dict[str, Any]:
    """The values of a node's widgets by name; the editor saves them in order, without names."""
    values, named = list(node.get("widgets_values") or ()), {}
    for name, declared in _widgets(node["type"], info):
        if values:
            named[name] = values[0]
        del values[: 1 + len(_editors_own(name, declared))]
    return named


def editor_format(
    graph: Graph, info: Info, sections: Sequence[Section] = SECTIONS
) -> dict[str, Any]:
    """A graph as the editor saves it, laid out from left to right in coloured groups."""
    places, groups = layout(graph, lambda node: _height(node, info), sections)
    links: list[list[Any]] = []
    nodes = [_editor_node(node, graph, info, links) for node in graph.nodes]
    for node, place in zip(nodes, places, strict=True):
        node |= place
        for slot, output in enumerate(node["outputs"]):
            output["links"] = [link[0] for link in links if link[1:3] == [node["id"], slot]]
    nodes.append(_note(graph))
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _editor_node(node: Node, graph: Graph, info: Info, links: list[list[Any]]) -> dict[str, Any]:
    """Everything but place and outgoing links; appends the incoming links to `links`."""
    inputs = []
    for name, declared in _declared(node.kind, info):
        value, kind = node.inputs.get(name), _kind(declared)
        if _is_widget(declared) and not isinstance(value, Link):
            continue
        link = None
        if isinstance(value, Link):
            link = len(links) + 1
            slot = _slot(value, graph, info)
            links.append([link, value.node, slot, node.number, len(inputs), kind])
        entry = {"name": name, "type": kind, "link": link}
        inputs.append(entry | ({"widget": {"name": name}} if _is_widget(declared) else {}))
    served = info[node.kind]
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": slot}
        for slot, (name, kind) in enumerate(
            zip(served["output_name"], served["output"], strict=True)
        )
    ]
    return {
        "id": node.number,
        "type": node.kind,
        **({"title": node.title} if node.title else {}),
        "flags": {"collapsed": True} if node.collapsed else {},
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.kind, **_models(node)},
        "widgets_values": _widget_values(node, info),
    }


def _models(node: Node) -> dict[str, Any]:
    """Where the page offers to download the model files that a loader names."""
    table = pack_module("library.downloads").DOWNLOADS
    named = [table[v] for v in node.inputs.values() if isinstance(v, str) and v in table]
    entries = [{"name": f.name, "url": f.url, "directory": f.directory} for f in named]
    return {"models": entries} if entries else {}


# Names that the editor takes for a seed's.
SEEDS = ("seed", "noise_seed")


def _widget_values(node: Node, info: Info) -> list[Any]:
    """Values in the editor's order, with what the editor itself adds."""
    values = []
    given = dict(_all_inputs(node, info))
    for name, declared in _widgets(node.kind, info):
        value = given.get(name)
        values.append(_default(declared) if isinstance(value, Link) else value)
        values += _editors_own(name, declared)
    return values


def _widgets(kind: str, info: Info) -> list[tuple[str, Any]]:
    return [(name, declared) for name, declared in _declared(kind, info) if _is_widget(declared)]


def _editors_own(name: str, declared: Sequence[Any]) -> list[str]:
    """What the editor saves after a widget's value: what becomes of a seed, the upload button.

    A whole number called seed has the first without asking for it, unless it says no.
    """
    own = {"control_after_generate": "fixed", "image_upload": "image"}
    unsaid = {"control_after_generate": name in SEEDS} if declared[0] == "INT" else {}
    options = {**unsaid, **{k: v for k, v in _options(declared).items() if v is not None}}
    return [value for option, value in own.items() if options.get(option)]


def _note(graph: Graph) -> dict[str, Any]:
    return {
        "id": len(graph.nodes) + 1,
        "type": "MarkdownNote",
        "title": graph.title or graph.name,
        "pos": [-MARGIN, -TITLE - 3 * MARGIN - 150],
        "size": [2 * WIDTH + GAP, 150],
        "flags": {},
        "order": len(graph.nodes),
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [graph.note],
    }


def _height(node: Node, info: Info) -> int:
    rows, picture = 0, node.kind in ("LoadImage", "SaveImage", "PreviewImage", "SaveAnimatedWEBP")
    for _, declared in _declared(node.kind, info):
        rows += 4 if _options(declared).get("multiline") else 1
    # Loaders write below their widgets what they found, others show it.
    shown = 90 if node.kind.startswith("IPAdapter") and "Loader" in node.kind else 0
    shown = 280 if picture else SHOWN.get(node.kind, shown)
    return 40 + ROW * max(rows, len(info[node.kind]["output"])) + shown


def _all_inputs(node: Node, info: Info) -> list[tuple[str, Any]]:
    """The inputs that the graph gives, and the defaults of the widgets that it does not."""
    declared = dict(_declared(node.kind, info))
    if unknown := node.inputs.keys() - declared.keys():
        raise ValueError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
    return [
        (name, node.inputs.get(name, _default(spec) if _is_widget(spec) else None))
        for name, spec in declared.items()
        if name in node.inputs or _is_widget(spec)
    ]


def _declared(kind: str, info: Info) -> list[tuple[str, Any]]:
    groups = info[kind]["input"]
    return [item for group in ("required", "optional") for item in groups.get(group, {}).items()]


def _kind(declared: Sequence[Any]) -> str:
    return "COMBO" if isinstance(declared[0], list) else declared[0]


def _options(declared: Sequence[Any]) -> Mapping[str, Any]:
    return declared[1] if len(declared) > 1 else {}


def _is_widget(declared: Sequence[Any]) -> bool:
    return _kind(declared) in WIDGETS and not _options(declared).get("forceInput")


def _default(declared: Sequence[Any]) -> Any:
    options = _options(declared)
    if "default" in options:
        return options["default"]
    choices = declared[0] if isinstance(declared[0], list) else options.get("options")
    return choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(_kind(declared), 0)


def _slot(link: Link, graph: Graph, info: Info) -> int:
    kind = graph.nodes[link.node - 1].kind
    return info[kind]["output_name"].index(link.output)


def _api_value(value: Any, graph: Graph, info: Info) -> Any:
    return [str(value.node), _slot(value, graph, info)] if isinstance(value, Link) else value
