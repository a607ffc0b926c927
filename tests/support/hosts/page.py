"""What tests do on ComfyUI's page: load a graph, find a node, press, drag, run, look."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .server import script

# The page's own error at startup, on the frontend that is tested.
OWN_ERRORS = ("reading 'id'",)


@dataclass
class Editor:
    """The graph editor in a page of a browser."""

    page: Any
    errors: list[str]
    vue: bool

    def clear(self) -> None:
        """Start anew: no nodes, no errors, no selection, no dialog (of missing models)."""
        self.errors.clear()
        for button in self.page.locator(".p-dialog-close-button").all():
            button.click()
            button.wait_for(state="detached")
        self.page.mouse.move(120, 480)  # over nothing that would open
        # `clean` forgets what nodes have shown: new ones of the same number would show it again.
        self.page.evaluate("() => { app.canvas.deselectAll(); app.clean(); app.graph.clear(); }")

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as the editor saves it, and look at all of it."""
        self.page.evaluate("graph => app.loadGraphData(graph)", workflow)
        self.page.wait_for_function(f"app.graph._nodes.length === {len(workflow['nodes'])}")
        self.settle()

    def add(self, kind: str, **properties: Any) -> int:
        """Start a new graph with one node; returns its id."""
        script = """([kind, properties]) => {
            app.graph.clear();
            const node = LiteGraph.createNode(kind);
            node.pos = [520, 160];
            Object.assign(node.properties, properties);
            app.graph.add(node);
            app.canvas.ds.offset = [40, 40];
            app.canvas.ds.scale = 1;
            app.graph.setDirtyCanvas(true, true);
            return node.id;
        }"""
        node = self.page.evaluate(script, [kind, properties])
        self.settle()
        return node

    def settle(self) -> None:
        """Wait until the page has drawn twice."""
        self.page.evaluate(
            "() => new Promise(done => setTimeout(() =>"
            " requestAnimationFrame(() => requestAnimationFrame(done)), 150))"
        )

    def save_as(self, name: str) -> None:
        """Save the open workflow as a user does: Ctrl+S, a name, Enter."""
        self.page.keyboard.press("Control+s")
        self.page.locator("[role=dialog] input").last.fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator("[role=dialog]").last.wait_for(state="detached")
        self.settle()

    def reload_and_open(self, name: str) -> None:
        """Load the page anew and open a saved workflow from its list."""
        self.page.reload()
        self.page.wait_for_function(script("tools.browser").READY)
        self.clear()  # newer pages begin with a workflow
        self.page.keyboard.press("w")
        self.page.get_by_text(re.compile(f"^{name}(.json)?$")).last.click()
        self.page.wait_for_function("app.graph._nodes.length > 0")
        self.page.keyboard.press("w")
        self.settle()

    def search(self, words: str) -> list[str]:
        """What the page offers to add for these words, the best first; its list stays open."""
        field = self.page.locator("input[role=combobox]:focus")
        for _ in range(5):  # two slow clicks are no double one
            self.page.mouse.dblclick(750, 600)
            self.page.wait_for_timeout(1500)
            if field.count():
                break
        field.wait_for()
        self.page.keyboard.type(words)
        self.page.wait_for_timeout(1000)  # it waits for more letters
        return self.page.locator(
            ".p-autocomplete-option, [data-testid=result-item]"
        ).all_inner_texts()

    def browse_templates(self, pack: str) -> Any:
        """Open the list of templates at a pack's own; returns their part of the page."""
        self.page.locator(".templates-tab-button").first.click()
        content = self.page.locator("[data-testid=template-workflows-content]")
        content.wait_for()
        self.page.locator(".p-dialog, [role=dialog]").last.get_by_text(pack).first.click()
        self.settle()
        return content

    def widget(self, node: int, name: str) -> Any:
        """The value of a node's widget."""
        script = (
            "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"
        )
        return self.page.evaluate(script, [node, name])

    def set_widget(self, node: int, name: str, value: Any) -> None:
        """Set a widget as the page's own code does."""
        script = """([id, name, value]) => {
            const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value);
            app.graph.setDirtyCanvas(true, true);
        }"""
        self.page.evaluate(script, [node, name, value])
        self.settle()

    def saved(self) -> dict[str, Any]:
        """The graph as it would be saved."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def prompt(self) -> dict[str, Any]:
        """The graph as it would be queued."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse inside an element; places are shares of its width and height."""
        box = self.place_of(selector)
        left, top, width, height = (box[name] for name in ("x", "y", "width", "height"))
        points = [(left + x * width, top + y * height) for x, y in (start, end)]
        mouse = self.page.mouse
        mouse.move(*points[0])
        mouse.down()
        mouse.move(*points[1], steps=6)
        mouse.up()
        self.settle()

    def place_of(self, selector: str) -> dict[str, float]:
        """Where an element is, once it has come to rest: it follows the canvas's next frames."""
        before, box = None, self.page.locator(selector).first.bounding_box()
        while box != before:
            self.settle()
            before, box = box, self.page.locator(selector).first.bounding_box()
        return box

    def run(self, seconds: float = 120) -> None:
        """Queue the graph and wait until it has ended."""
        with self.page.expect_response("**/prompt") as answered:
            self.page.evaluate("() => app.queuePrompt(0, 1)")
        answer = answered.value
        assert answer.ok, f"the server refuses the graph: {answer.text()}"
        number, deadline = answer.json()["prompt_id"], time.monotonic() + seconds
        # Asked again and again from here: the page's own waiting takes a promise for an answer.
        while number not in self._asked(f"/history/{number}"):
            assert time.monotonic() < deadline, (
                f"the graph has not ended after {seconds:.0f} s; queue: {self._asked('/queue')}"
            )
            self.page.wait_for_timeout(100)
        self.settle()

    def _asked(self, path: str) -> dict[str, Any]:
        """What the server answers to the page."""
        script = "async (path) => (await fetch(path)).text()"
        return json.loads(self.page.evaluate(script, path))

    def problems(self) -> list[str]:
        """Uncaught errors of the page without its own, and parts that it could not draw."""
        broken = self.page.locator(".node-error").all_inner_texts()
        ours = [text for text in self.errors if not any(own in text for own in OWN_ERRORS)]
        return ours + broken

    def shoot(self, path: Path) -> None:
        """Write a screenshot."""
        self.settle()
        self.page.screenshot(path=str(path))
