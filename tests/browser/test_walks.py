"""The first hour by mouse, as somebody new walks it: every move a real one, every click counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.hosts.server import running, script

PACK = "image-prompt-adapter"
VIEW = {"width": 1500, "height": 1000}
SETTLED = "() => window.app?.graph?._nodes.length > 10"
UPLOAD = """() => {
    const node = app.graph._nodes.find((one) => one.type === "LoadImage");
    const button = node.widgets.find((one) => one.type === "button");
    const { scale, offset } = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + (node.pos[0] + node.size[0] / 2 + offset[0]) * scale,
            box.top + (node.pos[1] + (button.last_y ?? button.y) + 10 + offset[1]) * scale];
}"""
RESULTS = """() => app.graph._nodes.filter((one) => one.type === "SaveImage").every((one) =>
    one.imgs?.[0]?.naturalWidth || document.querySelector(`[data-node-id="${one.id}"] img`))"""


class Walk:
    """A hand with a mouse on a page that nobody has used before."""

    def __init__(self, page: Any, picture: Path) -> None:
        self.page, self.picture = page, picture
        self.clicks, self.started = 0, time.monotonic()

    def click(self, x: float, y: float) -> None:
        """Move there and press."""
        self.page.mouse.move(x, y, steps=8)
        self.page.mouse.click(x, y)
        self.clicks += 1

    def press(self, part: Any) -> None:
        """Click on the middle of a part of the page."""
        part.wait_for()
        part.scroll_into_view_if_needed()
        box = part.bounding_box()
        self.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def show(self, step: str) -> None:
        """A screenshot."""
        self.page.screenshot(path=str(self.picture.with_stem(f"{self.picture.stem}_{step}")))

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started


@pytest.fixture
def walk(browser: Any, picture: Path) -> Iterator[Callable[[Any, str], Walk]]:
    """Begins a walk on a server at an address."""
    contexts = []

    def begin(server: Any, address: str) -> Walk:
        context = browser.new_context(viewport=VIEW)
        contexts.append(context)
        context.set_default_timeout(120_000)
        local = (server.url, "data:", "blob:")
        context.route(
            "**/*", lambda r: r.continue_() if r.request.url.startswith(local) else r.abort()
        )
        walk = Walk(context.new_page(), picture)
        walk.page.goto(address)
        return walk

    yield begin
    for context in contexts:
        context.close()


@pytest.mark.slow
def test_from_a_template_to_its_downloads(
    newer: Path | None, walk: Any, tmp_path: Path, record_property: Any
) -> None:
    """Without any model: the page offers the files of the first template."""
    with running(tmp_path / "base", page=newer, models=False) as server:
        hand = walk(server, server.url)
        hand.page.wait_for_function(script("tools.browser").READY)
        content = hand.page.locator("[data-testid=template-workflows-content]")
        hand.page.wait_for_timeout(2000)  # on a first visit the list opens by itself
        if not content.count():
            hand.press(hand.page.locator(".templates-tab-button").first)
        content.wait_for()
        hand.press(hand.page.locator(".p-dialog, [role=dialog]").last.get_by_text(PACK).first)
        hand.show("1_list")
        first = next(iter(script("workflow_graphs").graphs())).file
        hand.press(hand.page.locator(f"[data-testid='template-workflow-{first}']"))
        name = "ip-adapter_sd15.safetensors"
        if newer is not None:  # which counts what is missing, and lists it when asked
            hand.press(hand.page.get_by_text("View details").first)
        hand.page.get_by_text(name).first.wait_for()
        hand.page.get_by_text("Download").first.wait_for()
        hand.page.wait_for_timeout(1500)
        hand.show("2_downloads")
        record_property("measured", f"{hand.clicks} clicks, {hand.seconds():.0f} s")
        assert hand.clicks <= 3


@pytest.mark.slow
def test_from_the_link_to_an_own_result(
    demo: Any, walk: Any, tmp_path: Path, record_property: Any
) -> None:
    """Of the kept demo: an own picture in, a result out."""
    server, link = demo
    own = tmp_path / "my picture.png"
    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save(own)
    hand = walk(server, link)
    hand.page.wait_for_function(SETTLED)
    hand.page.wait_for_timeout(2000)
    hand.show("1_opened")
    with hand.page.expect_file_chooser() as chosen:
        button = hand.page.get_by_text("choose file to upload")
        if button.count():
            hand.press(button.first)
        else:
            hand.click(*hand.page.evaluate(UPLOAD))
    chosen.value.set_files(str(own))
    hand.clicks += 1  # in the window of the system
    hand.page.wait_for_timeout(1500)
    hand.show("2_own_picture")
    run = hand.page.locator("[data-testid=queue-button]")
    hand.press(run.first if run.count() else hand.page.get_by_role("button", name="Run").first)
    while not (done := json.loads(server.fetch("/history"))) or not ended(done):
        hand.page.wait_for_timeout(300)
    hand.page.wait_for_function(RESULTS)
    seconds = hand.seconds()
    hand.page.wait_for_timeout(1500)
    hand.show("3_result")
    record_property("measured", f"{hand.clicks} clicks, {seconds:.0f} s")
    assert hand.clicks == 3
    (entry,) = done.values()
    assert entry["status"]["status_str"] == "success"
    assert any("my picture" in str(node) for node in entry["prompt"][2].values())


def ended(history: dict[str, Any]) -> bool:
    """Whether the one prompt has come to its end."""
    return all(entry["status"]["completed"] for entry in history.values())
