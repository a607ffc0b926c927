"""Writes the pictures of the help pages: every node as the real editor draws it, in web/docs/nodes.

Run it in this repository's environment after a change to a node's looks:
`python scripts/python.py scripts/help_pictures.py [NODE ...]`. It needs Chromium (CHROMIUM_PATH).
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.browser import chromium, editor_page
from tools.comfy_server import ComfyServer, make_base
from tools.environment import NAME, ROOT, say
from tools.random_models import random_models

PAGES = ROOT / "web" / "docs"
FOLDER = PAGES / "nodes"
MARGIN, TITLE, COLOURS = 8, 30, 64
# What the pictures show besides defaults: widgets as a user has set them, and the text of a run.
ADAPTER = "ip-adapter-plus_sd15.safetensors"
WIDGETS: dict[str, dict[str, Any]] = {
    "IPAdapterModelLoader": {"ipadapter_file": ADAPTER},
    "IPAdapterImageEncoderLoader": {
        "clip_vision_name": "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
    },
    "IPAdapterMS": {"layer_weights": "0:0.2, 1:0.2, 2:0.4, 3:1.4, 6:1, 7:0.6, 8:0.3"},
    "IPAdapterWeights": {"frames": 16, "timing": "ease_in_out", "add_ending_frames": 4},
    "IPAdapterLoadEmbeds": {"embeds": "IP_embeds_00001_.safetensors"},
    "IPAdapterPromptScheduleFromWeightsStrategy": {"prompt": "a cat in spring\na cat in autumn"},
}
TEXTS = {
    "IPAdapterModelLoader": f"{ADAPTER}: plus for SD1.5, 16 tokens, needs ViT-H (1280)",
    "IPAdapterUnifiedLoader": f"{ADAPTER}\nCLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    "IPAdapterSaveEmbeds": "IP_embeds_00001_.safetensors",
}
DRAW = """async ([kind, widgets, text]) => {
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    node.pos = [500, 200];
    app.graph.add(node);
    for (const [name, value] of Object.entries(widgets)) {
        const widget = node.widgets.find((widget) => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
    }
    if (text) node.onExecuted({ text: [text] });
    app.canvas.ds.offset = [0, 0];
    app.canvas.ds.scale = 1;
    app.graph.setDirtyCanvas(true, true);
    await new Promise((done) => setTimeout(() => requestAnimationFrame(done), 400));
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + node.pos[0], box.top + node.pos[1], node.size[0], node.size[1]];
}"""


def main(arguments: Sequence[str]) -> int:
    """Write the pictures of these nodes, or of all; 0 if every page has one."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        sys.exit("error: no Chromium found; install it or set CHROMIUM_PATH")
    names = list(arguments) or sorted(path.stem for path in PAGES.glob("*.md"))
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="help-") as folder, sync_playwright() as driver:
        base = make_base(Path(folder), {NAME: ROOT}, random_models())
        with ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base) as server:
            browser = driver.chromium.launch(executable_path=program)
            view = {"width": 1500, "height": 1500}
            with editor_page(browser, server, [], viewport=view, device_scale_factor=1.5) as page:
                for name in names:
                    say(name)
                    write(page, name)
    return 0


def write(page: Any, name: str) -> None:
    """One node's picture, in few colours: a flat drawing needs no more."""
    from PIL import Image

    left, top, width, height = page.evaluate(DRAW, [name, WIDGETS.get(name, {}), TEXTS.get(name)])
    clip = {
        "x": left - MARGIN,
        "y": top - TITLE - MARGIN,
        "width": width + 2 * MARGIN,
        "height": height + TITLE + 2 * MARGIN,
    }
    picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
