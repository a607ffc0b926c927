"""Every workflow of the pack opens in the real editor as it was meant: no missing node, every
widget value in its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.server import ROOT, script

FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# Widget values to cut off the end of a pack node's list, as older files lack them.
SHORT = {"simple": ("IPAdapter", 1), "regions": ("IPAdapterRegionalConditioning", 2)}
SHORT["weight_types"] = ("IPAdapterAdvanced", 4)


def read(name: str, folder: str = ".") -> dict[str, Any]:
    return json.loads((FOLDER / folder / f"{name}.json").read_text("utf-8"))


def queued(page: Any) -> dict[str, Any]:
    """What the editor would queue, with the demo's models."""
    prompt = page.prompt()
    graph = {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for number, node in prompt.items()
    }
    return script("workflows").demo_twin(graph)


@pytest.mark.parametrize("name", NAMES)
def test_opens_as_it_was_meant(page: Any, name: str) -> None:
    workflow = read(name)
    page.load(workflow)
    known = "kinds => kinds.filter(k => !LiteGraph.registered_node_types[k])"
    assert page.page.evaluate(known, [node["type"] for node in workflow["nodes"]]) == []
    assert queued(page) == read(name, "api")
    assert page.problems() == []


@pytest.mark.parametrize("name", SHORT)
def test_files_without_trailing_values_take_the_defaults(page: Any, name: str) -> None:
    """The cut values are the defaults, except where the workflow sets others on purpose."""
    kind, count = SHORT[name]
    workflow, expected = read(name), read(name, "api")
    for node in workflow["nodes"]:
        if node["type"] == kind:
            del node["widgets_values"][-count:]
    page.load(workflow)
    assert queued(page) == expected
