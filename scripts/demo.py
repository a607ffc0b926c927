"""Shows what image prompts do, in a real ComfyUI: `python scripts/demo.py`.

Sets up all it needs, starts a server of its own on the CPU, queues graphs with two pictures and a
photograph as image prompts, and writes a contact sheet, with figures below it. The models are the
small trained ones of scripts/demoset. The last line printed is the path of the sheet.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.comfy_server import ComfyServer, ServerError, make_base
from tools.environment import NAME, ROOT, SetUpError, ready, say

if TYPE_CHECKING:
    from PIL.Image import Image
    from tools.contact_sheet import Given, Panel

OUTPUT = ROOT / "output" / "demo.png"
# A workflow for those who keep the server: its name in the editor's list of workflows.
WORKFLOW = "image prompt demo.json"


def main() -> None:
    """Set up the environment, then go on inside it."""
    arguments = parse(sys.argv[1:])
    if arguments.inside:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every finally runs
        sys.exit(inside(arguments))
    ready().become([__file__, "--inside", *sys.argv[1:]])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--keep", action="store_true", help="leave the server running; print its URL"
    )
    parser.add_argument("--port", type=int, help="the server's port (default: a free one)")
    parser.add_argument("--reference", type=Path, help="the image prompt (default: a drawing)")
    parser.add_argument("--second", type=Path, help="the second one (default: another drawing)")
    parser.add_argument("--photograph", type=Path, help="the third one (default: a cat)")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps of each picture")
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
    """Start the server, sample every picture, write the sheet; returns its path."""
    from tools import demo_models
    from tools.contact_sheet import SHUFFLED, panels

    output = arguments.output.resolve()
    models = demo_models.demo_models()
    base = Path(tempfile.mkdtemp(prefix="image-prompt-demo-"))
    try:
        make_base(base, {NAME: ROOT}, models)
        given = write_inputs(base / "input", arguments)
        demo_models.shuffled_adapter(models, demo_models.STANDARD, SHUFFLED)
        server = ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base)
        server.port = arguments.port or server.port
        server.keep = arguments.keep
        say(f"Starting ComfyUI at {server.url}")
        with server:
            write_workflow(server)
            sheet, _ = contact_sheet(server, given, list(panels()), arguments.steps)
        output.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(output)
        if server.process:
            say(f"ComfyUI stays at {server.url}; process {server.process.pid} (end it when done)")
            say(
                f"Open it in a browser, press w (Workflows) and choose "
                f"{WORKFLOW.removesuffix('.json')}; put your own picture into the node Image "
                "prompt, and press Run. Pressing w again closes the list."
            )
    finally:
        (models / "ipadapter" / SHUFFLED).unlink(missing_ok=True)
        if not arguments.keep:
            shutil.rmtree(base, ignore_errors=True)
    return output


def write_inputs(folder: Path, arguments: argparse.Namespace) -> dict[str, Image]:
    """The pictures and masks that the graphs load, by file name."""
    from PIL import Image
    from tools import contact_sheet as sheet
    from tools import demo_models

    def chosen(path: Path | None, default: Image) -> Image:
        return default if path is None else Image.open(path).convert("RGB")

    given = {
        sheet.REFERENCE: chosen(
            arguments.reference, demo_models.drawing("triangle", "yellow", "purple")
        ),
        sheet.OUTLINES: demo_models.drawing("cross", "black", "white"),
        sheet.SECOND: chosen(arguments.second, demo_models.drawing("ring", "red", "white")),
        sheet.PHOTO: chosen(arguments.photograph, demo_models.photograph()),
    }
    size = (demo_models.SIZE, demo_models.SIZE)
    left = Image.new("RGB", size)
    left.paste("white", (0, 0, size[0] // 2, size[1]))
    masks = {sheet.LEFT: left, sheet.RIGHT: left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    for name, picture in {**given, **masks}.items():
        picture.save(folder / name)
    return given


def write_workflow(server: ComfyServer) -> None:
    """A workflow with the demo's models, for the editor's own list."""
    from tools.contact_sheet import editor_graph
    from tools.workflow_formats import editor_format, write

    folder = server.base / "user" / "default" / "workflows"
    folder.mkdir(parents=True, exist_ok=True)
    workflow = editor_format(editor_graph(), server.info)
    write(folder / WORKFLOW, workflow)


@dataclass(frozen=True)
class Figures:
    """How far a panel's pictures are from the reference, 0 to 1, on average."""

    title: str
    distance: float


def contact_sheet(
    server: ComfyServer, given: dict[str, Image], panels: Sequence[Panel | Given], steps: int
) -> tuple[Image, list[Figures]]:
    """Sample the panels and put all on one sheet; with the figures of those that are measured."""
    from PIL import Image
    from tools import contact_sheet as sheet
    from tools.demo_models import layout_distance
    from tools.workflow_formats import api_format

    if "IMPORT FAILED" in server.log.read_text("utf-8", "replace"):
        raise ServerError(f"ComfyUI cannot import the pack:\n{server.tail()}")
    rows: list[list[tuple[str, Image]]] = [[] for _ in sheet.ROW_TITLES]
    figures, started = [], time.monotonic()
    for panel in panels:
        if isinstance(panel, sheet.Given):
            rows[panel.row].append((panel.title, given[panel.file]))
            continue
        graph = api_format(sheet.graph_of(panel, steps), server.info)
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in server.pictures(graph)]
        rows[panel.row].append((panel.title, pictures[0]))
        say(f"  {time.monotonic() - started:5.1f} s  {panel.title}")
        if panel.measured:
            apart = [layout_distance(picture, given[sheet.REFERENCE]) for picture in pictures]
            figures.append(Figures(panel.title, sum(apart) / len(apart)))
    rows = [row for row in rows if row]
    return sheet.draw(rows, notes(figures, sheet.TEXT)), figures


def notes(figures: Sequence[Figures], text: str) -> list[str]:
    """The lines below the sheet; they are printed too."""
    lines = [f'Text: "{text}". Distance from the reference (0 to 1, mean of 4 samples):']
    lines += ["   ".join(f"{one.title}: {one.distance:.3f}" for one in figures)]
    for line in lines:
        say(line)
    return lines


if __name__ == "__main__":
    main()
