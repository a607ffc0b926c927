"""The link that the demo prints, on a page that nobody has used before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SETTLED = "() => window.app?.graph?._nodes.length > 10"
VIEW = {"width": 1500, "height": 1000}
SEEN = """() => {
    const nodes = app.graph._nodes.map(node => node.getBounding());
    const scale = app.canvas.ds.scale, [x, y] = app.canvas.ds.offset;
    const edges = nodes.map(([left, top, width, height]) => [
        (left + x) * scale, (top + y) * scale,
        (left + width + x) * scale, (top + height + y) * scale]);
    return {scale, left: Math.min(...edges.map(e => e[0])), top: Math.min(...edges.map(e => e[1])),
            right: Math.max(...edges.map(e => e[2])), bottom: Math.max(...edges.map(e => e[3])),
            groups: app.graph._groups.map(group => group.title)};
}"""


def test_link_opens_a_graph_that_fits(browser: Any, demo: Any, picture: Path) -> None:
    server, link = demo
    context = browser.new_context(viewport=VIEW)
    try:
        page = context.new_page()
        page.set_default_timeout(120_000)
        local = (server.url, "data:", "blob:")
        page.route(
            "**/*",
            lambda route: (
                route.continue_() if route.request.url.startswith(local) else route.abort()
            ),
        )
        page.goto(link)
        page.wait_for_function(SETTLED)
        page.wait_for_timeout(3000)  # what would cover it has come by then
        page.screenshot(path=str(picture))
        seen = page.evaluate(SEEN)
        assert page.locator("[data-testid=template-workflows-content]").count() == 0
        assert sorted(seen["groups"]) == ["1 Your picture", "2 Run", "3 Compare"]
        assert seen["scale"] >= 0.6
        assert seen["left"] >= 0 and seen["right"] <= VIEW["width"]
        assert seen["top"] >= 0 and seen["bottom"] <= VIEW["height"]
    finally:
        context.close()
