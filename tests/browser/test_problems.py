"""An error in the user's language, beside the page's own report of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts.page import Editor

LOCALES = Path(__file__).resolve().parents[2] / "locales"
SHOWN = """() => {
    const show = LiteGraph.createNode("PreviewAny");
    show.pos = [900, 160];
    app.graph.add(show);
    app.graph._nodes.find((node) => node.type === "IPAdapterWeights").connect(0, show, 0);
}"""


def meaning(language: str, code: str) -> str:
    texts = json.loads((LOCALES / language / "main.json").read_text("utf-8"))
    return texts["imagePromptProblems"][code]


def speak(page: Editor, language: str) -> None:
    page.page.evaluate(f"() => app.extensionManager.setting.set('Comfy.Locale', '{language}')")
    page.settle()


@pytest.fixture
def chinese(page: Editor) -> Iterator[Editor]:
    speak(page, "zh")
    yield page
    speak(page, "en")


def run(page: Editor, node: int, weights: str) -> None:
    page.set_widget(node, "weights", weights)
    page.run()


def test_errors_are_explained(chinese: Editor, picture: Path) -> None:
    page = chinese
    node = page.add("IPAdapterWeights")
    page.page.evaluate(SHOWN)
    toast = page.page.locator(".p-toast-message", has_text="IPAdapter [")
    dialog = page.page.locator(".p-dialog")
    run(page, node, "1, x")
    toast.wait_for()
    assert meaning("zh", "weights-text") in toast.inner_text()
    assert "[weights-text]" in dialog.inner_text()
    page.shoot(picture)
    # It goes when the graph runs again, and English needs none.
    page.page.keyboard.press("Escape")
    run(page, node, "1, 0.5")
    toast.wait_for(state="detached")
    speak(page, "en")
    run(page, node, "1, y")
    dialog.wait_for()
    page.page.wait_for_timeout(500)
    assert toast.count() == 0
    assert page.problems() == []
