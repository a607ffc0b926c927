"""Shows what image prompts do, in a real ComfyUI: `python scripts/demo.py`.

Sets up all it needs, starts a server of its own, draws without and with a picture as the prompt,
and writes a contact sheet. The models are the small trained ones of scripts/demoset; with --models,
your own. The last line printed is the path of the sheet.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.comfy_server import ComfyServer, ServerError
from tools.environment import ROOT, SetUpError, ready, say

if TYPE_CHECKING:
    from PIL.Image import Image
    from tools.contact_sheet import Given, Panel
    from tools.kit import Kit

OUTPUT = ROOT / "output" / "demo.png"


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
    add = parser.add_argument
    add("--keep", action="store_true", help="leave the server running; print a link to it")
    add("--models", type=Path, help="a ComfyUI models folder of yours to draw with")
    add("--checkpoint", help="the one in it (default: the first that an adapter fits)")
    add("--port", type=int, help="the server's port (default: a free one)")
    add("--reference", type=Path, help="the image prompt (default: a drawing)")
    add("--second", type=Path, help="the second one (default: another drawing)")
    add("--steps", type=int, default=12, help="sampling steps of each picture")
    add("--output", type=Path, default=OUTPUT, help="the PNG to write")
    add("--controls", action="store_true", help="print distances from the reference instead")
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


def demo(arguments: argparse.Namespace) -> Path | str:
    """Start the server, draw every picture, write the sheet; returns its path."""
    from tools import contact_sheet, demo_models
    from tools.demo_pages import make_demo_base
    from tools.kit import Kit, own_kit

    own = arguments.models and arguments.models.expanduser().resolve()
    kit = own_kit(own, arguments.checkpoint) if own else Kit()
    models = own or demo_models.demo_models()
    base, kept = Path(tempfile.mkdtemp(prefix="image-prompt-demo-")), False
    try:
        # What is saved beside the demo's models in the page must not stay in the cache.
        make_demo_base(base, models, copied=not own and (arguments.keep or arguments.controls))
        given = write_inputs(base / "input", arguments)
        with server_of(base, arguments, own_models=bool(own)) as server:
            if arguments.controls:
                shuffled = contact_sheet.SHUFFLED
                demo_models.shuffled_adapter(base / "models", demo_models.STANDARD, shuffled)
                return measured(server, given, arguments.steps)
            path = write_sheet(server, given, kit, arguments)
            if arguments.keep:
                tell(server, kit)
                kept = True
    finally:
        if not kept:
            shutil.rmtree(base, ignore_errors=True)
    return path


def server_of(base: Path, arguments: argparse.Namespace, own_models: bool) -> ComfyServer:
    """The server, not started: on the CPU, unless real models can have a GPU."""
    import torch

    server = ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base)
    server.cpu = not (own_models and torch.cuda.is_available())
    server.port = arguments.port or server.port
    server.keep = arguments.keep
    say(f"Starting ComfyUI at {server.url}")
    return server


def tell(server: ComfyServer, kit: Kit) -> None:
    """What is left running, and how to see it: the last line is the link."""
    from tools.demo_pages import write_templates
    from workflow_graphs import graphs

    link = write_templates(server, kit, graphs() if kit.extras else ())
    assert server.process is not None
    say(f"ComfyUI stays running; process {server.process.pid} (end it when done). Open:\n{link}")


def write_inputs(folder: Path, arguments: argparse.Namespace) -> dict[str, Image]:
    """The pictures and masks that the graphs load, by file name."""
    from PIL import Image
    from tools import contact_sheet as sheet
    from tools import demo_models

    def chosen(path: Path | None, *default: str) -> Image:
        return Image.open(path).convert("RGB") if path else demo_models.drawing(*default)

    given = {
        sheet.REFERENCE: chosen(arguments.reference, "triangle", "yellow", "purple"),
        sheet.OUTLINES: demo_models.drawing("cross", "black", "white"),
        sheet.SECOND: chosen(arguments.second, "ring", "red", "white"),
    }
    size = (demo_models.SIZE, demo_models.SIZE)
    left = Image.new("RGB", size)
    left.paste("white", (0, 0, size[0] // 2, size[1]))
    masks = {sheet.LEFT: left, sheet.RIGHT: left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    for name, picture in {**given, **masks}.items():
        picture.save(folder / name)
    return given


def write_sheet(
    server: ComfyServer, given: dict[str, Image], kit: Kit, arguments: argparse.Namespace
) -> Path:
    """Draw every picture and put all on one sheet; returns its path."""
    from tools import contact_sheet as sheet

    output = arguments.output.resolve()
    rows: dict[int, list[tuple[str, Image]]] = {}
    for panel, pictures in drawn(server, given, list(sheet.panels(kit)), kit, arguments.steps):
        rows.setdefault(panel.row, []).append((panel.title, pictures[0]))
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.draw(list(rows.values()), f'Words: "{kit.text}"').save(output)
    return output


def drawn(
    server: ComfyServer,
    given: dict[str, Image],
    panels: Sequence[Panel | Given],
    kit: Kit,
    steps: int,
) -> Iterator[tuple[Panel | Given, list[Image]]]:
    """Every panel with its pictures; says how far it is, and how long the rest may take."""
    from PIL import Image
    from tools import contact_sheet as sheet
    from tools.workflow_formats import api_format

    if "IMPORT FAILED" in server.log.read_text("utf-8", "replace"):
        raise ServerError(f"ComfyUI cannot import the pack:\n{server.tail()}")
    count, number, started = sum(isinstance(p, sheet.Panel) for p in panels), 0, time.monotonic()
    for panel in panels:
        if isinstance(panel, sheet.Given):
            yield panel, [given[panel.file]]
            continue
        files = server.pictures(api_format(sheet.graph_of(panel, steps, kit), server.info))
        number += 1
        say(progress(number, count, time.monotonic() - started) + f": {panel.title}")
        yield panel, [Image.open(io.BytesIO(file)).convert("RGB") for file in files]


def progress(number: int, count: int, seconds: float) -> str:
    """How far it is after so many seconds, and how long the rest may take."""
    left = seconds / number * (count - number)
    return f"{number} of {count}" + (f", about {left:.0f} s left" if number < count else "")


def measured(server: ComfyServer, given: dict[str, Image], steps: int) -> str:
    """How far the controls' pictures are from the reference, as the rows of a table."""
    from tools import contact_sheet as sheet
    from tools.demo_models import layout_distance
    from tools.kit import Kit

    lines = [f"Distance from the reference (0 to 1, mean of {sheet.SAMPLES} samples):"]
    for panel, pictures in drawn(server, given, sheet.controls(), Kit(), steps):
        apart = [layout_distance(picture, given[sheet.REFERENCE]) for picture in pictures]
        lines.append(f"| {panel.title} | {sum(apart) / len(apart):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
