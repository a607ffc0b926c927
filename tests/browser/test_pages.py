"""What users do with nodes on the page: add, undo, copy, collapse, put into a subgraph, in a light
theme and in a small window."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.page import Editor

PACK = "custom_nodes.image-prompt-adapter"
EDITOR = ".image-prompt-layers svg"
WIDGETS = {"IPAdapterMS": "layer_editor", "IPAdapterWeights": "curve"}
ADD_ALL = """kinds => {
    kinds.forEach((kind, at) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [(at % 10) * 460, Math.floor(at / 10) * 800];
        app.graph.add(node);
    });
    app.canvas.ds.scale = 0.3;
    app.canvas.ds.offset = [200, 200];
    app.graph.setDirtyCanvas(true, true);
}"""
# Of the open graph's nodes: each drawn widget, and how many elements of the pack the page shows.
SHOWN = """() => Object.fromEntries(app.canvas.graph._nodes.map((node) => [
    node.id,
    (node.widgets ?? []).filter((widget) => widget.type.startsWith("image_prompt_"))
        .map((widget) => {
            const shown = document.querySelectorAll(
                `[data-node-id="${node.id}"] [data-image-prompt]`);
            return [
                widget.element.isConnected, [...shown].includes(widget.element), shown.length,
            ];
        }),
]))"""
TALL = """() => [...document.querySelectorAll(".image-prompt-layers svg [data-layer]")]
    .filter((bar) => bar.querySelector("rect").getAttribute("height") > 2)
    .map((bar) => Number(bar.dataset.layer))"""
REMEMBER = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()"
SELECT = """id => {
    app.canvas.deselectAll();
    app.canvas.selectNode(app.graph.getNodeById(id));
}"""


def is_shown(page: Editor, node: Any) -> bool:
    """Whether the page shows a node's own elements, and no others."""
    shown = page.page.evaluate(SHOWN)[str(node)]
    count = len(shown) if page.vue else 0  # the classic canvas has them beside the nodes
    return bool(shown) and all(one == [True, page.vue, count] for one in shown)


def opened_with(page: Editor, kind: str, **widgets: Any) -> int:
    """A workflow with one node, opened as from a file: undo needs one that is open."""
    node = page.add(kind)
    for name, value in widgets.items():
        page.set_widget(node, name, value)
    page.load(page.saved())
    look_at(page, (40, 40), 1)
    return node


def look_at(page: Editor, offset: tuple[int, int], scale: float) -> None:
    """Move the canvas."""
    script = """([offset, scale]) => {
        Object.assign(app.canvas.ds, { offset, scale });
        app.graph.setDirtyCanvas(true, true);
    }"""
    page.page.evaluate(script, [offset, scale])
    page.settle()


def press(page: Editor, keys: str) -> None:
    """Keys on the canvas."""
    page.page.evaluate("app.canvas.canvas.focus()")
    page.page.keyboard.press(keys)
    page.settle()


def test_every_node_is_drawn(page: Editor, server: Any, picture: Path) -> None:
    info = json.loads(server.fetch("/object_info"))
    kinds = [kind for kind, node in info.items() if node["python_module"] == PACK]
    assert len(kinds) > 40
    page.page.evaluate(ADD_ALL, kinds)
    page.settle()
    page.shoot(picture)
    assert page.page.locator(".image-prompt-layers").count() >= 1
    assert page.page.locator(".image-prompt-curve").count() == 1
    assert page.problems() == []


def test_undo_and_redo_show_the_new_node(page: Editor, picture: Path) -> None:
    """The page then makes another node with the number of the one before."""
    node = opened_with(page, "IPAdapterMS", layer_weights="3:2")
    page.set_widget(node, "layer_weights", "5:0.5")
    page.page.evaluate(REMEMBER)
    for keys, layer in (("Control+z", 3), ("Control+y", 5)):
        press(page, keys)
        page.page.wait_for_function(f"({TALL})().join() === '{layer}'")
        assert is_shown(page, node)
    page.shoot(picture)
    page.drag(EDITOR, (7.5 / 11, 0.5), (7.5 / 11, 0.2))
    assert "7:" in page.widget(node, "layer_weights")
    assert page.problems() == []


@pytest.mark.parametrize("kind", WIDGETS)
def test_copies_have_elements_of_their_own(page: Editor, kind: str) -> None:
    node = opened_with(page, kind)
    page.page.evaluate(SELECT, node)
    press(page, "Control+c")
    page.page.mouse.move(300, 400)
    press(page, "Control+v")
    nodes = page.page.evaluate("app.graph._nodes.map((node) => node.id)")
    assert len(nodes) == 2
    assert all(is_shown(page, number) for number in nodes)
    assert page.problems() == []


@pytest.mark.parametrize("kind", WIDGETS)
def test_collapsed_and_back(page: Editor, kind: str) -> None:
    node = opened_with(page, kind)
    for visible in (False, True):
        page.page.evaluate("id => app.graph.getNodeById(id).collapse()", node)
        drawn = page.page.locator(f"[data-image-prompt={WIDGETS[kind]}]")
        drawn.first.wait_for(state="visible" if visible else "hidden")
    assert is_shown(page, node)
    assert page.problems() == []


def test_in_a_subgraph(fresh: Editor, picture: Path) -> None:
    """On a page of its own: 1.32.9 draws no node of any pack once a subgraph was left."""
    page = fresh
    node = opened_with(page, "IPAdapterMS", layer_weights="4:1")
    page.page.evaluate(SELECT, node)
    page.page.evaluate("void (window.made = app.graph.convertToSubgraph(app.canvas.selectedItems))")
    page.page.evaluate("app.canvas.setGraph(made.subgraph)")
    page.page.wait_for_function(f"({TALL})().join() === '4'")
    page.shoot(picture)
    (inner,) = page.page.evaluate("app.canvas.graph._nodes.map((node) => node.id)")
    assert is_shown(page, inner)
    (queued,) = page.prompt().values()
    assert queued["inputs"]["layer_weights"] == "4:1"
    page.page.evaluate("app.canvas.setGraph(app.graph)")
    page.settle()
    assert page.problems() == []


@pytest.fixture
def small(page: Editor) -> Iterator[Editor]:
    """A small window."""
    page.page.set_viewport_size({"width": 640, "height": 520})
    yield page
    page.page.set_viewport_size({"width": 1500, "height": 1000})


def test_in_a_small_window(small: Editor, picture: Path) -> None:
    node = opened_with(small, "IPAdapterMS")
    look_at(small, (-430, -300), 0.8)  # at 0.5 Nodes 2.0 draws a sketch
    small.drag(EDITOR, (1.5 / 11, 0.5), (1.5 / 11, 0.2))
    small.shoot(picture)
    assert "1:" in small.widget(node, "layer_weights")
    assert small.problems() == []


@pytest.fixture
def light(page: Editor) -> Iterator[Editor]:
    """The page's light theme."""
    change = "name => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
    page.page.evaluate(change, "light")
    page.page.wait_for_timeout(500)
    yield page
    page.page.evaluate(change, "dark")


@pytest.mark.parametrize("kind", WIDGETS)
def test_in_a_light_theme(light: Editor, kind: str, picture: Path) -> None:
    """Texts stand out from what they are drawn on."""
    node = opened_with(light, kind)
    light.page.evaluate("id => app.graph.getNodeById(id).onExecuted({text: ['a line']})", node)
    light.settle()
    light.shoot(picture)
    colours = light.page.locator(".image-prompt-text").evaluate(
        "one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]"
        ".map((colour) => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, one) => sum + +one, 0))"
    )
    assert abs(colours[0] - colours[1]) > 250
    assert light.problems() == []
