"""What the pack says on the page: the text of a result, and help."""

from __future__ import annotations

import json
import re

import pytest
from support.help import PAGES

NAMES = ("IPAdapterUnifiedLoader", "IPAdapterMS", "IPAdapterWeights")
FREE = b'{"free_memory": true, "unload_models": true}'


def status_graph(page):
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


def test_loader_says_what_it_loaded(page, server, picture):
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


@pytest.mark.parametrize("name", NAMES)
def test_help_renders(page, name, picture):
    node = page.add(name)
    page.page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", node)
    page.settle()
    page.page.locator("[data-testid=info-button]").first.click()
    panel = page.page.locator(".node-help-content").first
    panel.get_by_text("Common mistakes").wait_for()
    assert panel.locator("li").count() > 5
    loaded = """() => [...document.querySelectorAll(".node-help-content img")]
        .every(image => image.complete && image.naturalWidth > 0)"""
    page.page.wait_for_function(loaded)
    page.shoot(picture)
    page.page.locator(".side-bar-button-selected").first.click()
    assert page.problems() == []


def test_every_page_is_served(server, root):
    for path in PAGES.glob("*.md"):
        served = server.fetch(f"/extensions/image-prompt-adapter/docs/{path.name}")
        assert served == path.read_bytes()
