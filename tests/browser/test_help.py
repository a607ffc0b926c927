"""What the pack says on the page: the text of a result, and help."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.hosts.page import Editor
from support.references.help import PAGES

NAMES = ("IPAdapterUnifiedLoader", "IPAdapterMS", "IPAdapterWeights")
FREE = b'{"free_memory": true, "unload_models": true}'


def status_graph(page: Editor) -> dict[str, Any]:
    """The loader, and a node that makes it run, as a saved workflow."""
    script = """() => {
        const [loader, preview] = ["IPAdapterModelLoader", "PreviewAny"].map((kind, index) => {
            const node = LiteGraph.createNode(kind);
            node.pos = [520 + 400 * index, 160];
            return app.graph.add(node);
        });
        loader.connect(0, preview, 0);
    }"""
    page.page.evaluate(script)
    saved = page.saved()
    page.clear()
    return saved


def test_loader_says_what_it_loaded(page: Editor, server: Any, picture: Path) -> None:
    """The status line, after a real run: a node that was cached has nothing new to say."""
    server.fetch("/free", FREE)
    page.load(status_graph(page))
    page.run()
    field = page.page.locator(".image-prompt-text").first
    field.wait_for()
    # Which file comes first in the list depends on what other tests left in the models folder.
    assert re.match(r"\S+\.safetensors: .+ tokens, needs ", field.inner_text())
    page.shoot(picture)
    assert "result_text" not in json.dumps(page.prompt())
    assert page.problems() == []


# Pixels of the node below its widgets, the picture being one of them.
SPARE = """() => {
    const node = app.graph._nodes.find((node) => node.type === "IPAdapterEncoder");
    return node.size[1] - node.computeSize()[1];
}"""


def encoder_graph(page: Editor) -> dict[str, Any]:
    """The Encoder node with a wide picture, and a node that makes it run, as a saved workflow."""
    script = """(weight) => {
        const add = (kind, x, y) => {
            const node = LiteGraph.createNode(kind);
            node.pos = [x, y];
            return app.graph.add(node);
        };
        const encoder = add("IPAdapterEncoder", 620, 60);
        const kinds = ["IPAdapterModelLoader", "LoadImage", "CLIPVisionLoader"];
        const sources = kinds.map((kind, row) => add(kind, 260, [60, 360, 240][row]));
        sources[1].widgets.find((widget) => widget.name === "image").value = "wide.png";
        ["ipadapter", "image", "clip_vision"].forEach((name, index) =>
            sources[index].connect(0, encoder, encoder.findInputSlot(name)));
        encoder.connect(0, add("PreviewAny", 1020, 60), 0);
        encoder.widgets.find((widget) => widget.name === "weight").value = weight;
    }"""
    # Another weight for each kind of page: a node that was cached has nothing to say.
    page.page.evaluate(script, 0.5 if page.vue else 0.7)
    saved = page.saved()
    page.clear()
    return saved


def test_encoder_shows_what_it_sees(page: Editor, server: Any, picture: Path) -> None:
    """The square on the node, and that a wide picture loses its sides."""
    Image.linear_gradient("L").resize((480, 160)).save(server.base / "input" / "wide.png")
    page.load(encoder_graph(page))
    page.run()
    drawn = """() => app.graph._nodes.find((node) => node.type === "IPAdapterEncoder")
        .imgs?.some((image) => image.naturalWidth > 0)"""
    if page.vue:
        shown = page.page.locator("[data-node-id] img[src*='image_prompt_view']").first
        loaded = "image => image.complete && [224, 336].includes(image.naturalWidth)"
        page.page.wait_for_function(loaded, arg=shown.element_handle())
    else:
        page.page.wait_for_function(drawn)
        page.settle()
        assert page.page.evaluate(SPARE) >= 0, "the picture is drawn beyond the node"
    fields = page.page.locator(".image-prompt-text").all_inner_texts()
    (text,) = [text for text in fields if text.startswith("What the encoder sees")]
    assert "480 x 160" in text and "IPAdapter Tiled" in text
    page.shoot(picture)
    assert page.problems() == []


@pytest.mark.parametrize("name", NAMES)
def test_help_renders(page: Editor, name: str, picture: Path) -> None:
    node = page.add(name)
    page.page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", node)
    page.settle()
    page.page.locator("[data-testid=info-button]").first.click()
    panel = page.page.locator(".node-help-content").first
    panel.get_by_text("Common mistakes").wait_for()
    assert panel.locator("li").count() > 5
    assert panel.locator(f"img[src$='/docs/nodes/{name}.png']").count() == 1
    loaded = """() => [...document.querySelectorAll(".node-help-content img")]
        .every(image => image.complete && image.naturalWidth > 0)"""
    page.page.wait_for_function(loaded)
    page.shoot(picture)
    if (tab := page.page.locator(".side-bar-button-selected")).count():
        tab.first.click()
    assert page.problems() == []


def test_every_page_is_served(server: Any, root: Path) -> None:
    for path in PAGES.glob("*.md"):
        served = server.fetch(f"/extensions/image-prompt-adapter/docs/{path.name}")
        assert served == path.read_bytes()
