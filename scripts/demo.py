"""Shows what an image prompt does, in a real ComfyUI: `python scripts/demo.py`.

Sets up all it needs, starts a server of its own on the CPU, queues a workflow with a photograph as
the image prompt, and writes one picture: the photograph, the result without it, the result with it.
The last line printed is the path of that picture.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_server import (
    ComfyServer,
    ServerError,
    error_of,
    make_base,
    saved_images,
    to_api,
    with_values,
)
from environment import NAME, ROOT, SetUpError, cache_folder, ensure, say

if TYPE_CHECKING:
    from PIL.Image import Image

WORKFLOW = ROOT / "workflows" / "image_prompt.json"
OUTPUT = ROOT / "output" / "demo.png"
# What the demo sets in the workflow, by node class: its models, and a size and a pace for a CPU.
SETTINGS: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"},
    "CLIPVisionLoader": {"clip_name": "random.safetensors"},
    "IPAdapterModelLoader": {"ipadapter_file": "random.safetensors"},
    "ControlNetLoader": {"control_net_name": "random.safetensors"},
    "LoraLoaderModelOnly": {"lora_name": "random.safetensors"},
    "LoadImage": {"image": "reference.png"},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 8},
    "IPAdapterUnifiedLoaderFaceID": {"provider": "CPU"},
    "IPAdapterMS": {"layer_weights": "1:0.4, 2:1.2"},
    "IPAdapterWeights": {"frames": 2},
}
RANDOM_NOTE = "The weights are random: the pictures show that every step runs, and mean nothing."
OFFERED = "image prompt demo"  # the workflow's name on the page that --keep leaves
PANEL = 320
LABEL = 34


def main() -> None:
    """Set up the environment, then go on inside it."""
    arguments = parse(sys.argv[1:])
    if arguments.inside:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every finally runs
        sys.exit(inside(arguments))
    try:
        environment = ensure()
    except SetUpError as error:
        sys.exit(f"error: {error}")
    environment.become([__file__, "--inside", *sys.argv[1:]])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--keep", action="store_true", help="leave the server running; print its URL"
    )
    parser.add_argument("--port", type=int, help="the server's port (default: a free one)")
    parser.add_argument("--reference", type=Path, help="the image prompt (default: a photograph)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the PNG to write")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def inside(arguments: argparse.Namespace) -> int:
    """Run the demo in its environment; 0 if the picture is written."""
    try:
        path = demo(arguments)
    except (ServerError, SetUpError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    say(str(path))
    return 0


def demo(arguments: argparse.Namespace) -> Path:
    """Start the server, queue the workflow, write the picture; returns its path."""
    from PIL import Image

    output = arguments.output.resolve()
    reference = photograph() if arguments.reference is None else Image.open(arguments.reference)
    models = demo_models()
    base = Path(tempfile.mkdtemp(prefix="image-prompt-demo-"))
    try:
        make_base(base, {NAME: ROOT}, models)
        reference.convert("RGB").save(base / "input" / SETTINGS["LoadImage"]["image"])
        server = ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base)
        server.port = arguments.port or server.port
        server.keep = arguments.keep
        say(f"Starting ComfyUI at {server.url}")
        with server:
            results = generate(server)
            if arguments.keep:
                offer(server)
        output.parent.mkdir(parents=True, exist_ok=True)
        side_by_side({"image prompt": reference, **results}).save(output)
        if server.process:
            say(f"ComfyUI stays at {server.url}; process {server.process.pid} (end it when done)")
            say(
                f"Open it in a browser, press w (Workflows) and choose {OFFERED}; put your own "
                "picture into the node Image prompt, and press Run."
            )
    finally:
        if not arguments.keep:
            shutil.rmtree(base, ignore_errors=True)
    return output


def offer(server: ComfyServer) -> None:
    """Put the workflow with the demo's models among the workflows of the server's page."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    ready = with_values(workflow, SETTINGS, server.get("/object_info"))
    name = urllib.parse.quote(f"workflows/{OFFERED}.json", safe="")
    server.fetch(f"/api/userdata/{name}?overwrite=true", json.dumps(ready).encode())


def demo_models() -> Path:
    """The folder with the demo's models, made once (about 900 MB)."""
    from random_models import MODELS, write

    folder = cache_folder() / "models"
    if not all((folder / name).exists() for name in MODELS):
        say(f"Writing models with random weights into {folder} (once)")
        write(folder)
    say(RANDOM_NOTE)
    return folder


def photograph() -> Image:
    """A real photograph that comes with scikit-image: Chelsea the cat, by Stefan van der Walt."""
    from PIL import Image
    from skimage import data

    return Image.fromarray(data.chelsea())


def generate(server: ComfyServer) -> dict[str, Image]:
    """Queue the workflow; returns what it saved, by the title of the node that saved it."""
    import io

    from PIL import Image

    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    if "IMPORT FAILED" in server.log.read_text("utf-8", "replace"):
        raise ServerError(f"ComfyUI cannot import the pack:\n{server.tail()}")
    graph = configured(to_api(workflow, server.get("/object_info")))
    titles = {str(node["id"]): node.get("title", node["type"]) for node in workflow["nodes"]}
    entry = server.run(graph, Progress(titles))
    if error := error_of(entry):
        raise ServerError(error)
    files = {node: server.view(images[0]) for node, images in saved_images(entry).items()}
    return {titles[node]: Image.open(io.BytesIO(file)) for node, file in files.items()}


def configured(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with the demo's settings."""
    for node in graph.values():
        node["inputs"] |= SETTINGS.get(node["class_type"], {})
    return graph


class Progress:
    """Prints the server's events: each node as it starts, sampling steps by the time they took."""

    def __init__(self, titles: dict[str, str]) -> None:
        self.titles = titles
        self.started = time.monotonic()

    def __call__(self, event: str, data: dict[str, Any]) -> None:
        seconds = time.monotonic() - self.started
        if event == "executing" and data.get("node"):
            say(f"  {seconds:5.1f} s  {self.titles.get(data['node'], data['node'])}")
        elif event == "progress" and data["max"] > 1:
            say(f"  {seconds:5.1f} s    step {data['value']} of {data['max']}")


def side_by_side(pictures: dict[str, Image]) -> Image:
    """The pictures in a row, each under its label, with a note where their models are random."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (PANEL * len(pictures), PANEL + 2 * LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, picture) in enumerate(pictures.items()):
        left = column * PANEL
        draw.text((left + PANEL / 2, LABEL / 2), label, "black", font, anchor="mm")
        fitted = ImageOps.fit(picture.convert("RGB"), (PANEL - 8, PANEL - 8))
        sheet.paste(fitted, (left + 4, LABEL + 4))
    draw.text((sheet.width / 2, LABEL * 1.5 + PANEL), RANDOM_NOTE, "black", small, anchor="mm")
    return sheet


if __name__ == "__main__":
    main()
