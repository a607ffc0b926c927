"""An error in the user's language: in a message with a button, and in red on the node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.page import Editor

LOCALES = Path(__file__).resolve().parents[2] / "locales"
TOAST = ".p-toast-message, [data-testid=toast]"
FIELD = ".image-prompt-text"
GRAPH = """() => {
    const add = (kind, x) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [x, 160];
        return app.graph.add(node);
    };
    const kinds = ["IPAdapterWeights", "EmptyImage", "PreviewImage"];
    const [weights, square, show] = kinds.map((kind, at) => add(kind, 60 + 420 * at));
    square.widgets.find((widget) => widget.name === "width").value = 64;
    square.widgets.find((widget) => widget.name === "height").value = 64;
    square.connect(0, weights, 0);
    weights.connect(weights.findOutputSlot("image_1"), show, 0);
    return weights.id;
}"""
PICTURES = """() => {
    const node = app.graph._nodes.find((node) => node.type === "PreviewImage");
    const drawn = document.querySelectorAll(`[data-node-id="${node.id}"] img`);
    return (node.imgs?.length ?? 0) + drawn.length;
}"""


def texts(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))


@pytest.fixture
def speak(page: Editor) -> Iterator[Any]:
    """A function that sets the page's language."""

    def change(language: str) -> None:
        page.page.evaluate(f"() => app.extensionManager.setting.set('Comfy.Locale', '{language}')")
        page.settle()

    yield change
    change("en")


def graph_of(page: Editor) -> int:
    """A picture that goes through a node of the pack into a preview, loaded as users have it."""
    page.page.evaluate(GRAPH)
    saved = page.saved()
    page.load(saved)
    return next(node["id"] for node in saved["nodes"] if node["type"] == "IPAdapterWeights")


def run(page: Editor, node: int, weights: str) -> None:
    page.set_widget(node, "weights", weights)
    page.run()


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_errors_are_explained(page: Editor, speak: Any, language: str, picture: Path) -> None:
    speak(language)
    node = graph_of(page)
    run(page, node, "1, x")
    toast = page.page.locator(TOAST, has_text="IPAdapter [weights-text]")
    toast.wait_for()
    said = page.page.locator(FIELD).first
    said.wait_for()
    page.shoot(picture)
    for shown in (toast.inner_text(), said.inner_text()):
        assert 'expected a number such as 0.8, got "x".' in shown
        assert language == "en" or texts(language)["imagePromptProblems"]["weights-text"] in shown
    red, green, blue = said.evaluate(
        "one => getComputedStyle(one).color.match(/\\d+/g).map(Number)"
    )
    assert red > 1.5 * max(green, blue)
    # Both go when the graph runs again.
    page.page.keyboard.press("Escape")
    run(page, node, "1, 0.5")
    toast.wait_for(state="detached")
    said.wait_for(state="detached")
    assert page.problems() == []


def test_the_button_opens_the_help_page(page: Editor, picture: Path) -> None:
    run(page, graph_of(page), "1, x")
    page.page.locator(TOAST).get_by_role("button", name="Help").click()
    panel = page.page.locator(".node-help-content").first
    panel.get_by_text("Common mistakes").wait_for()
    page.shoot(picture)
    if (tab := page.page.locator(".side-bar-button-selected")).count():
        tab.first.click()
    assert page.problems() == []


def test_a_failed_run_clears_the_picture(page: Editor, picture: Path) -> None:
    node = graph_of(page)
    run(page, node, "1, 0.25")
    page.page.wait_for_function(f"({PICTURES})() > 0")
    run(page, node, "1, x")
    page.page.locator(FIELD).first.wait_for()
    page.page.keyboard.press("Escape")
    page.shoot(picture)
    assert page.page.evaluate(PICTURES) == 0
    run(page, node, "1, 0.75")
    page.page.wait_for_function(f"({PICTURES})() > 0")
    assert page.problems() == []
