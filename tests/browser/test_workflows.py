"""Every workflow of the pack opens in the real editor as it was meant: no missing node, every
widget value in its place; the browser of templates lists and opens them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.hosts.server import ROOT, script

FOLDER = ROOT / "workflows"
FILES = {graph.name: graph.file for graph in script("workflow_graphs").graphs()}
NAMES = sorted(FILES)
PACK = "image-prompt-adapter"
CARDS = "[data-testid^=template-workflow-]"
# Widget values to cut off the end of a pack node's list, as older files lack them.
SHORT = {"simple": ("IPAdapter", 1), "regions": ("IPAdapterRegionalConditioning", 2)}
SHORT["weight_types"] = ("IPAdapterAdvanced", 4)


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{FILES[name]}.json").read_text("utf-8"))


def read_api(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))


def card(page: Any, name: str) -> Any:
    """A template in the page's list."""
    return page.page.locator(f"[data-testid='template-workflow-{FILES[name]}']")


def all_cards(page: Any) -> Any:
    """The templates in the page's list, of which newer pages show some and more when scrolled."""
    cards = page.page.locator(CARDS)
    while (shown := cards.count()) < len(FILES):
        cards.last.scroll_into_view_if_needed()
        more = "([cards, shown]) => document.querySelectorAll(cards).length > shown"
        page.page.wait_for_function(more, arg=[CARDS, shown])
    return cards


def queued(page: Any) -> dict[str, Any]:
    """What the editor would queue."""
    return {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for number, node in page.prompt().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_opens_as_it_was_meant(page: Any, name: str) -> None:
    workflow = read(name)
    page.load(workflow)
    known = "kinds => kinds.filter(k => !LiteGraph.registered_node_types[k])"
    assert page.page.evaluate(known, [node["type"] for node in workflow["nodes"]]) == []
    assert queued(page) == read_api(name)
    assert page.problems() == []


@pytest.mark.parametrize("name", SHORT)
def test_files_without_trailing_values_take_the_defaults(page: Any, name: str) -> None:
    """The cut values are the defaults, except where the workflow sets others on purpose."""
    kind, count = SHORT[name]
    workflow, expected = read(name), read_api(name)
    for node in workflow["nodes"]:
        if node["type"] == kind:
            del node["widgets_values"][-count:]
    page.load(workflow)
    assert queued(page) == expected


def test_templates_are_listed_in_order_with_pictures(page: Any, picture: Any) -> None:
    """Under the pack's name, as people read them, each with a thumbnail that loads."""
    content = page.browse_templates(PACK)
    cards = all_cards(page)
    listed = cards.evaluate_all("cards => cards.map(card => card.dataset.testid)")
    assert listed == [f"template-workflow-{file}" for file in FILES.values()]
    for name in FILES:  # a card's picture is asked for once the card can be seen
        card(page, name).scroll_into_view_if_needed()
        loaded = "image => image.complete && image.naturalWidth > 0"
        shown = card(page, name).locator("img").first
        page.page.wait_for_function(loaded, arg=shown.element_handle())
    card(page, "image_prompt").scroll_into_view_if_needed()
    page.shoot(picture)
    page.page.locator("[role=dialog] button:has(.pi-times)").first.click()
    content.wait_for(state="detached")
    assert page.problems() == []


@pytest.mark.parametrize("name", ["image_prompt", "regions"])
def test_template_opens_from_the_list(page: Any, name: str, picture: Any) -> None:
    content = page.browse_templates(PACK)
    card(page, name).click()
    content.wait_for(state="detached")
    count = len(read(name)["nodes"])
    page.page.wait_for_function(f"app.graph._nodes.length === {count}")
    assert queued(page) == read_api(name)
    page.shoot(picture)
    assert page.problems() == []
