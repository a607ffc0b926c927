"""The demo's contact sheet, from the trained models on a server of its own."""

from __future__ import annotations

from typing import Any

import pytest
from support.server import script


@pytest.fixture(scope="module")
def given(demo_server: Any) -> dict[str, Any]:
    """The demo's own pictures, where the server finds them."""
    return script("demo").write_inputs(demo_server.base / "input", script("demo").parse([]))


def test_image_prompts_come_near_their_picture(demo_server: Any, given: dict[str, Any]) -> None:
    demo, sheet = script("demo"), script("contact_sheet")
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
    sheet, comfy_server = script("contact_sheet"), script("comfy_server")
    for panel in sheet.panels():
        if isinstance(panel, sheet.Panel):
            prompt = demo_server.queue(sheet.studio_of(panel, steps=1).graph.nodes)
            assert comfy_server.error_of(demo_server.wait(prompt)) is None, panel.title


def test_editor_gets_a_workflow_with_the_demo_models(demo_server: Any) -> None:
    demo, comfy_server = script("demo"), script("comfy_server")
    demo.write_workflow(demo_server)
    kept = demo_server.get(f"/userdata/workflows%2F{demo.WORKFLOW.replace(' ', '%20')}")
    graph = comfy_server.to_api(kept, demo_server.get("/object_info"))
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    entry = demo_server.wait(demo_server.queue(graph))
    assert comfy_server.error_of(entry) is None
    assert len(comfy_server.saved_images(entry)) == 2
