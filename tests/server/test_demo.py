"""The demo's contact sheet, from the trained models on a server of its own."""

from __future__ import annotations

from typing import Any

import pytest
from support.hosts.server import script


@pytest.fixture(scope="module")
def given(demo_server: Any) -> dict[str, Any]:
    """The demo's own pictures, where the server finds them."""
    return script("demo").write_inputs(demo_server.base / "input", script("demo").parse([]))


def test_image_prompts_come_near_their_picture(demo_server: Any, given: dict[str, Any]) -> None:
    demo, sheet = script("demo"), script("tools.contact_sheet")
    titles = ("reference", "text only", "image only", "K', V' shuffled: broken")
    chosen = [panel for panel in sheet.panels() if panel.title in titles]
    picture, figures = demo.contact_sheet(demo_server, given, chosen, steps=8)
    distances = {one.title: one.distance for one in figures}
    assert distances["image only"] < 0.7 * distances["text only"]
    assert distances["image only"] < 0.7 * distances[titles[3]]
    assert picture.width == 3 * sheet.PANEL + 2 * sheet.MARGIN


def test_every_panel_is_a_graph_that_the_server_accepts(
    demo_server: Any, given: dict[str, Any]
) -> None:
    sheet, comfy_server = script("tools.contact_sheet"), script("tools.comfy_server")
    api_format = script("tools.workflow_formats").api_format
    for panel in sheet.panels():
        if isinstance(panel, sheet.Panel):
            graph = api_format(sheet.graph_of(panel, steps=1), demo_server.info)
            prompt = demo_server.queue(graph)
            assert comfy_server.error_of(demo_server.wait(prompt)) is None, panel.title


def test_editor_gets_a_workflow_with_the_demo_models(demo_server: Any) -> None:
    demo, comfy_server = script("demo"), script("tools.comfy_server")
    demo.write_workflow(demo_server)
    kept = demo_server.get(f"/userdata/workflows%2F{demo.WORKFLOW.replace(' ', '%20')}")
    graph = script("tools.workflow_formats").to_api(kept, demo_server.info)
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    entry = demo_server.wait(demo_server.queue(graph))
    assert comfy_server.error_of(entry) is None
    assert len(comfy_server.saved_images(entry)) == 2
