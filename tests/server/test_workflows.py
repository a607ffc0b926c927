"""Every workflow of the pack runs on a real server, and its files belong together."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from PIL import Image
from support.hosts.server import ROOT, script

FOLDER = ROOT / "workflows"
DESCRIBED = {graph.name: graph for graph in script("workflow_graphs").graphs()}
NAMES = sorted(DESCRIBED)
# The file that the one loads is what the other saves.
NEEDS = {"load_embeds": "save_embeds"}
STEPS = 2


def read(name: str) -> dict[str, Any]:
    """What the editor opens."""
    return json.loads((FOLDER / f"{DESCRIBED[name].file}.json").read_text("utf-8"))


def read_api(name: str) -> dict[str, Any]:
    """What a program sends."""
    return json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def finished(server: Any) -> dict[str, dict[str, Any]]:
    """History entries of the workflows that have run."""
    script("workflows").write_pictures(server.base / "input")
    script("workflows").write_face_models(server.base / "models")
    return {}


@pytest.fixture(scope="module")
def info(server: Any) -> dict[str, Any]:
    """What the server says of its nodes."""
    return server.get("/object_info")


def run(server: Any, finished: dict[str, Any], name: str) -> dict[str, Any]:
    """Run a workflow once on models of random weights, and first the one whose file it loads."""
    if name in NEEDS:
        run(server, finished, NEEDS[name])
    if name not in finished:
        graph = script("workflows").demo_twin(read_api(name))
        for node in graph.values():
            if "steps" in node["inputs"]:
                node["inputs"]["steps"] = STEPS
        finished[name] = server.wait(server.queue(graph))
    return finished[name]


def test_there_is_one_for_every_capability() -> None:
    files = sorted(path.stem for path in FOLDER.glob("*.json"))
    assert files == [graph.file for graph in DESCRIBED.values()]
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES
    assert len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_has_a_name_for_people(name: str) -> None:
    """In a list that shows nothing but file names, on every system."""
    assert re.fullmatch(r"\d\d [A-Z][A-Za-z0-9 ,.]{5,45}", DESCRIBED[name].file)


@pytest.mark.parametrize("name", NAMES)
def test_runs(server: Any, finished: Any, name: str) -> None:
    entry = run(server, finished, name)
    comfy_server = script("tools.comfy_server")
    assert comfy_server.error_of(entry) is None
    assert entry["status"]["status_str"] == "success"
    pictures = [file for files in comfy_server.saved_images(entry).values() for file in files]
    assert pictures or any(output.get("text") for output in entry["outputs"].values())
    for file in pictures:
        with Image.open(io.BytesIO(server.view(file))) as picture:
            assert picture.width >= 64


@pytest.mark.parametrize("name", NAMES)
def test_programs_get_the_same_graph(info: Any, name: str) -> None:
    graph = script("tools.workflow_formats").to_api(read(name), info)
    assert graph == read_api(name)


@pytest.mark.parametrize("name", NAMES)
def test_written_from_its_description(info: Any, name: str) -> None:
    """`scripts/workflows.py` has been run since the descriptions changed."""
    editor = script("workflows").editor_format(DESCRIBED[name], info)
    assert told(json.loads(json.dumps(editor)), info) == told(read(name), info)


def told(editor: dict[str, Any], info: Any) -> dict[str, Any]:
    """A graph without the outputs of the host's own nodes that lead nowhere: it may have given them
    more since the file was written."""
    for node in editor["nodes"]:
        if not info.get(node["type"], {}).get("python_module", "").startswith("custom_nodes."):
            node["outputs"] = [output for output in node["outputs"] if output["links"]]
    return editor


@pytest.mark.parametrize("name", NAMES)
def test_names_files_that_users_have(name: str) -> None:
    """The demo's own file names stay out of what users open."""
    text = json.dumps([read(name), read_api(name)])
    assert "random" not in text
    assert "reference.png" not in text


@pytest.mark.parametrize("name", NAMES)
def test_has_a_note_and_a_thumbnail(name: str) -> None:
    (note,) = (node for node in read(name)["nodes"] if node["type"] == "MarkdownNote")
    assert len(note["widgets_values"][0]) > 80
    assert " " in note["title"] and "_" not in note["title"]
    thumbnail = FOLDER / f"{DESCRIBED[name].file}.jpg"
    assert thumbnail.stat().st_size <= 30_000
    with Image.open(thumbnail) as picture:
        assert picture.height == 256


@pytest.mark.parametrize("node", script("workflows").HELP)
def test_help_shows_the_templates_picture(node: str) -> None:
    template = DESCRIBED[script("workflows").HELP[node]]
    assert node in {given.kind for given in template.nodes}
    shown = ROOT / "web" / "docs" / "results" / f"{node}.jpg"
    assert shown.read_bytes() == (FOLDER / f"{template.file}.jpg").read_bytes()
    assert f"](results/{node}.jpg)" in (ROOT / "web" / "docs" / f"{node}.md").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name: str) -> None:
    title = 30
    boxes = [
        (node["pos"][0], node["pos"][1] - title, node["size"][0], node["size"][1] + title)
        for node in read(name)["nodes"]
    ]
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:index]:
            beside = x >= other_x + other_width or other_x >= x + width
            above = y >= other_y + other_height or other_y >= y + height
            assert beside or above


@pytest.mark.parametrize("name", NAMES)
def test_every_node_lies_in_one_group(name: str) -> None:
    workflow = read(name)
    boxes = [group["bounding"] for group in workflow["groups"]]
    assert 2 <= len(boxes) == len({group["color"] for group in workflow["groups"]}) <= 4
    for node in workflow["nodes"]:
        if node["type"] != "MarkdownNote":
            (x, y), (width, height) = node["pos"], node["size"]
            holds = [
                left <= x and x + width <= left + wide and top <= y and y + height <= top + high
                for left, top, wide, high in boxes
            ]
            assert sum(holds) == 1, node["type"]
