"""Writes what README shows of the page: docs/page.png and docs/editors.webp.

Run it in this repository's environment: `python scripts/python.py scripts/page_pictures.py`. Needs
Chromium (CHROMIUM_PATH). The graphs run on the demo's models.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import demo
from tools.browser import chromium, editor_page
from tools.comfy_server import ComfyServer
from tools.demo_models import demo_models
from tools.demo_pages import make_demo_base, write_templates
from tools.environment import ROOT, say
from tools.kit import Kit
from workflow_graphs import graphs

if TYPE_CHECKING:
    from PIL.Image import Image

VIEW = {"width": 1500, "height": 1000}
COLOURS = 256  # of a flat drawing with a few small pictures
SIZE = (640, 440)  # of the animation
FRAME_MS = 160
QUALITY = 70
OPENED = "() => window.app?.graph?._nodes.length > 10"
ENDED = "async (count) => Object.keys(await (await fetch('/history')).json()).length === count"
# Where the graph's groups and nodes are on the page.
GROUPS = """() => {
    const { scale, offset } = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect();
    const sides = app.graph._groups.map(({ _pos: [x, y], _size: [w, h] }) => [x, y, x + w, y + h]);
    app.graph._nodes.forEach(({ type, flags, pos: [x, y], size: [w, h] }) =>
        flags.collapsed || type === "MarkdownNote" || sides.push([x, y, x + w, y + h + 10]));
    const [left, top] = [0, 1].map((at) => Math.min(...sides.map((side) => side[at])));
    const [right, bottom] = [2, 3].map((at) => Math.max(...sides.map((side) => side[at])));
    return { x: box.left + (left + offset[0]) * scale, y: box.top + (top + offset[1]) * scale,
             width: (right - left) * scale, height: (bottom - top) * scale };
}"""
# One node alone, or the first of its class in the graph: its lower end in the middle of the page.
SHOW = """async ([kind, scale, alone]) => {
    if (alone) app.graph.clear();
    const node = alone ? app.graph.add(LiteGraph.createNode(kind))
        : app.graph._nodes.find((one) => one.type === kind);
    if (alone) node.setSize([420, node.size[1]]);
    const { ds, canvas } = app.canvas, [width, height] = node.size;
    ds.scale = scale;
    ds.offset = [750 / scale - node.pos[0] - width / 2, 700 / scale - node.pos[1] - height];
    app.graph.setDirtyCanvas(true, true);
    await new Promise((done) => setTimeout(() => requestAnimationFrame(done), 400));
    return node.id;
}"""
SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find((one) => one.name === name);
    widget.value = value;
    widget.callback?.(value);
    app.graph.setDirtyCanvas(true, true);
}"""


def main() -> int:
    """Write both files."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        sys.exit("error: no Chromium found; install it or set CHROMIUM_PATH")
    with tempfile.TemporaryDirectory(prefix="page-") as folder, sync_playwright() as driver:
        base = Path(folder) / "base"
        make_demo_base(base, demo_models(), copied=True)
        demo.write_inputs(base / "input", demo.parse([]))
        server = ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base)
        browser = driver.chromium.launch(executable_path=program)
        with server, editor_page(browser, server, [], viewport=VIEW) as page:
            link = write_templates(server, Kit(), graphs())
            say("docs/page.png")
            write_page(page, link)
            say("docs/editors.webp")
            shown = [*layer_editor(page), *curve(page), *training(page, server)]
            first, *others = shown
            options: dict[str, Any] = {
                "duration": FRAME_MS,
                "loop": 0,
                "quality": QUALITY,
                "method": 6,
            }
            path = ROOT / "docs" / "editors.webp"
            first.save(path, save_all=True, append_images=others, **options)
    return 0


def write_page(page: Any, link: str) -> None:
    """The demo's graph after a run."""
    from PIL import Image

    page.goto(link)
    page.wait_for_function(OPENED)
    page.wait_for_timeout(2000)
    page.evaluate("() => app.queuePrompt(0, 1)")
    while not page.evaluate(ENDED, 1):
        page.wait_for_timeout(1000)
    page.wait_for_timeout(4000)
    shot = page.screenshot(clip=page.evaluate(GROUPS))
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(ROOT / "docs" / "page.png", optimize=True)


def frame(page: Any) -> Image:
    """The middle of the page."""
    from PIL import Image

    width, height = SIZE
    clip = {"x": 750 - width / 2, "y": 500 - height / 2, "width": width, "height": height}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def layer_editor(page: Any) -> Iterator[Image]:
    """A mouse that draws weights over the layers."""
    page.evaluate(SHOW, ["IPAdapterMS", 0.9, True])
    bars = page.locator(".image-prompt-layers svg").bounding_box()
    left, top, width, height = (bars[name] for name in ("x", "y", "width", "height"))
    steps = 24
    for step in range(steps + 1):
        share = step / steps
        rise = 0.75 - 0.65 * (1 - abs(2 * share - 1))
        page.mouse.move(left + width * (0.04 + 0.92 * share), top + height * rise)
        if not step:
            page.mouse.down()
        yield frame(page)
    page.mouse.up()
    yield from [frame(page)] * 6


def curve(page: Any) -> Iterator[Image]:
    """Weights over frames, with one timing after the other."""
    node = page.evaluate(SHOW, ["IPAdapterWeights", 0.9, True])
    page.evaluate(SET, [node, "frames", 16])
    for timing in ("linear", "ease_in_out", "ease_in", "ease_out"):
        page.evaluate(SET, [node, "timing", timing])
        page.wait_for_timeout(300)
        yield from [frame(page)] * 5


def training(page: Any, server: ComfyServer) -> Iterator[Image]:
    """The loss curve while an adapter is trained."""
    (path,) = server.base.glob("custom_nodes/*/workflows/* Train an adapter.json")
    page.evaluate("async (graph) => app.loadGraphData(JSON.parse(graph))", path.read_text("utf-8"))
    page.wait_for_timeout(2000)
    page.evaluate(SHOW, ["IPAdapterTrain", 0.9, False])
    page.evaluate("() => app.queuePrompt(0, 1)")
    before = b""
    while not page.evaluate(ENDED, 2):
        shot = frame(page)
        if shot.tobytes() != before:
            before = shot.tobytes()
            yield shot
        page.wait_for_timeout(400)
    page.wait_for_timeout(1000)
    yield from [frame(page)] * 8


if __name__ == "__main__":
    sys.exit(main())
