"""Writes workflows/ from the descriptions in workflow_graphs.py, on a real server.

Run it in this repository's environment: `python scripts/python.py scripts/workflows.py [NAME ...]`.
NAME.json is what the editor opens; api/NAME.json the same graph in API format with the demo's
models; NAME.jpg the thumbnail, from a real run of the latter (--no-run leaves these alone).
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_server import ComfyServer, ServerError, error_of, make_base, saved_images
from demo import configured, demo_models, photograph
from environment import NAME, ROOT, say
from workflow_graphs import graphs
from workflow_parts import Graph, Link, Node

FOLDER = ROOT / "workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
WIDTH, GAP, ROW = 320, 60, 24
THUMBNAIL = 256
THUMBNAIL_BYTES = 30_000
# What the demo's graphs load, first and second picture; the editor's name the one ComfyUI brings.
PICTURES = ("person.png", "cat.png")
Info = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Write the workflows; 0 if all of them run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="workflows to write (default: all)")
    parser.add_argument("--no-run", action="store_true", help="write no thumbnails")
    given = parser.parse_args(arguments)
    wanted = [graph for graph in graphs() if not given.names or graph.name in given.names]
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="workflows-") as folder:
        base = make_base(Path(folder), {NAME: ROOT}, demo_models())
        write_pictures(base / "input")
        if not given.no_run:
            write_face_models(base / "models")
        with ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base) as server:
            info = server.get("/object_info")
            for graph in wanted:
                write(FOLDER / f"{graph.name}.json", editor_format(graph, info))
                twin = demo_twin(api_format(graph, info))
                write(FOLDER / "api" / f"{graph.name}.json", twin)
                if not given.no_run:
                    failed += not thumbnail(server, graph.name, twin)
    return failed


def write_pictures(folder: Path) -> None:
    """The pictures that the demo's graphs load: photographs that come with scikit-image."""
    from PIL import Image
    from skimage import data

    person = Image.fromarray(data.astronaut())  # Eileen Collins, by NASA
    for name, picture in zip(PICTURES, (person, photograph()), strict=True):
        picture.save(folder / name)


def write_face_models(models: Path) -> None:
    """Stand-ins for InsightFace's model pack, which the tests make; they know that person."""
    path = ROOT / "tests" / "support" / "face_models.py"
    spec = importlib.util.spec_from_file_location("face_models", path)
    module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
    spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
    module.ensure_pack(models / "insightface", "buffalo_l")


def demo_twin(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph in API format with the demo's models and pictures."""
    graph = configured(graph)
    loaders = [node["inputs"] for node in graph.values() if node["class_type"] == "LoadImage"]
    for number, inputs in enumerate(loaders):
        inputs["image"] = PICTURES[number % len(PICTURES)]
    return graph


def write(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with a node or a link on every line."""
    parts = [f"{json.dumps(key)}: {_lines(item)}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"


def thumbnail(server: ComfyServer, name: str, twin: dict[str, Any]) -> bool:
    """Run a graph and keep its pictures as NAME.jpg; whether it ran."""
    from PIL import Image

    say(name)
    try:
        entry = server.wait(server.queue(twin))
    except ServerError as error:
        say(f"  {error}")
        return False
    if problem := error_of(entry):
        say(f"  {problem}")
        return False
    files = [file for files in saved_images(entry).values() for file in files]
    pictures = [Image.open(io.BytesIO(server.view(file))).convert("RGB") for file in files]
    side = THUMBNAIL // len(pictures) if pictures else 0
    sheet = Image.new("RGB", (side * len(pictures), THUMBNAIL), "black")
    for column, picture in enumerate(pictures):
        scale = THUMBNAIL / picture.height
        grown = picture.resize((round(picture.width * scale), THUMBNAIL))
        left = (grown.width - side) // 2
        sheet.paste(grown.crop((left, 0, left + side, THUMBNAIL)), (side * column, 0))
    for quality in (88, 75, 60, 40):
        sheet.save(FOLDER / f"{name}.jpg", quality=quality)
        if (FOLDER / f"{name}.jpg").stat().st_size <= THUMBNAIL_BYTES:
            break
    return True


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


def editor_format(graph: Graph, info: Info) -> dict[str, Any]:
    """A graph as the editor saves it, laid out from left to right."""
    places = layout(graph, info)
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
        "groups": [],
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
        "flags": {},
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": _widget_values(node, info),
    }


def _widget_values(node: Node, info: Info) -> list[Any]:
    """Values in the editor's order, with what the editor itself adds."""
    values = []
    given = dict(_all_inputs(node, info))
    for name, declared in _declared(node.kind, info):
        if not _is_widget(declared):
            continue
        options = declared[1] if len(declared) > 1 else {}
        value = given.get(name)
        values.append(_default(declared) if isinstance(value, Link) else value)
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
    return values


def _note(graph: Graph) -> dict[str, Any]:
    return {
        "id": len(graph.nodes) + 1,
        "type": "MarkdownNote",
        "title": graph.name.replace("_", " "),
        "pos": [0, -190],
        "size": [2 * WIDTH + GAP, 150],
        "flags": {},
        "order": len(graph.nodes),
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [graph.note],
    }


def layout(graph: Graph, info: Info) -> list[dict[str, Any]]:
    """Place, size and order of every node: a column per step from the loaders, filled from top."""
    steps = {node.number: steps_before(node, graph) for node in graph.nodes}
    running = sorted(steps, key=lambda number: (steps[number], number))
    tops: dict[int, int] = {}
    places = []
    for node in graph.nodes:
        step, height = steps[node.number], _height(node, info)
        top = tops.get(step, 0)
        tops[step] = top + height + GAP
        place = {"pos": [step * (WIDTH + GAP), top], "size": [WIDTH, height]}
        places.append({**place, "order": running.index(node.number)})
    return places


def steps_before(node: Node, graph: Graph) -> int:
    """The longest way from a loader to this node."""
    before = (graph.nodes[v.node - 1] for v in node.inputs.values() if isinstance(v, Link))
    return max((steps_before(other, graph) + 1 for other in before), default=0)


def _height(node: Node, info: Info) -> int:
    rows, picture = 0, node.kind in ("LoadImage", "SaveImage", "PreviewImage", "SaveAnimatedWEBP")
    for _, declared in _declared(node.kind, info):
        options = declared[1] if len(declared) > 1 else {}
        rows += 4 if options.get("multiline") else 1
    return 40 + ROW * max(rows, len(info[node.kind]["output"])) + (280 if picture else 0)


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


def _is_widget(declared: Sequence[Any]) -> bool:
    options = declared[1] if len(declared) > 1 else {}
    return _kind(declared) in WIDGETS and not options.get("forceInput")


def _default(declared: Sequence[Any]) -> Any:
    options = declared[1] if len(declared) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = declared[0] if isinstance(declared[0], list) else options.get("options")
    return choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(_kind(declared), 0)


def _slot(link: Link, graph: Graph, info: Info) -> int:
    kind = graph.nodes[link.node - 1].kind
    return info[kind]["output_name"].index(link.output)


def _api_value(value: Any, graph: Graph, info: Info) -> Any:
    return [str(value.node), _slot(value, graph, info)] if isinstance(value, Link) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
