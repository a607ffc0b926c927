"""Writes workflows/ from the descriptions in workflow_graphs.py, on a real server.

Run it in this repository's environment: `python scripts/python.py scripts/workflows.py [NAME ...]`.
"NUMBER TITLE.json" is what the editor opens; api/NAME.json the same graph in API format; "NUMBER
TITLE.jpg" the thumbnail, from a run with the trained demo models: what was drawn, and in its corner
what was given; on other bases what is given, and no result. The help pages of the nodes in `HELP`
show it too. --no-run leaves pictures alone.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.comfy_server import ComfyServer, ServerError, make_base
from tools.demo_models import configured as with_demo_models
from tools.demo_models import demo_models, drawing, photograph
from tools.environment import NAME, ROOT, say
from tools.graph import Graph
from tools.random_models import configured, random_models
from tools.workflow_formats import api_format, editor_format, write
from workflow_graphs import graphs

if TYPE_CHECKING:
    from PIL import Image

FOLDER = ROOT / "workflows"
THUMBNAIL, INSET, EDGE, BAND = 256, 60, 2, 48
RESULTS = ROOT / "web" / "docs" / "results"
# Nodes whose help page shows a template's picture.
HELP = {
    "IPAdapter": "simple",
    "IPAdapterAdvanced": "image_prompt",
    "IPAdapterAttentionMap": "attention_map",
    "IPAdapterBatch": "animation",
    "IPAdapterFaceID": "face",
    "IPAdapterHook": "hook",
    "IPAdapterMS": "layer_weights",
    "IPAdapterPreciseStyleTransfer": "precise_style",
    "IPAdapterRegionalConditioning": "regions",
    "IPAdapterStyleComposition": "style_and_composition",
    "IPAdapterTiled": "tiled",
    "IPAdapterUnifiedLoader": "simple",
    "IPAdapterWeights": "animation",
}
THUMBNAIL_BYTES = 30_000
# What the twins load, first and second picture; the editor's name the one ComfyUI brings.
PICTURES = ("person.png", "cat.png")
DRAWINGS = ("first.png", "second.png")  # for the thumbnails
# No trained model here knows faces: this workflow runs on photographs with an adapter of random
# weights, and its thumbnail is the face that the node finds.
FACES = "face"
DOCTOR = ROOT / "web" / "docs" / "nodes" / "IPAdapterDoctor.png"
FACE_ADAPTER = "ipadapter/random_faceid.safetensors"


def main(arguments: Sequence[str]) -> int:
    """Write the workflows; 0 if all of them run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="workflows to write (default: all)")
    parser.add_argument("--no-run", action="store_true", help="write no thumbnails")
    given = parser.parse_args(arguments)
    wanted = [graph for graph in graphs() if not given.names or graph.name in given.names]
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="workflows-") as folder:
        base = make_base(Path(folder), {NAME: ROOT})
        if not given.no_run:
            write_thumbnail_inputs(base)
        with ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base) as server:
            info = server.info
            for graph in wanted:
                write(FOLDER / f"{graph.file}.json", editor_format(graph, info))
                write(FOLDER / "api" / f"{graph.name}.json", api_format(graph, info))
                if graph.base:
                    keep(given_to(graph), graph)
                elif not given.no_run:
                    names = PICTURES if graph.name == FACES else DRAWINGS
                    shown = with_pictures(
                        with_overlay(with_demo_models(api_format(graph, info))), names
                    )
                    failed += not thumbnail(server, graph, shown)
    return failed


def write_thumbnail_inputs(base: Path) -> None:
    """Models and drawings for the thumbnails."""
    shutil.copytree(demo_models(), base / "models", dirs_exist_ok=True)
    shutil.copy(random_models() / FACE_ADAPTER, base / "models" / FACE_ADAPTER)
    write_pictures(base / "input")
    write_face_models(base / "models")
    drawing("triangle", "yellow", "purple").save(base / "input" / DRAWINGS[0])
    drawing("cross", "red", "white").save(base / "input" / DRAWINGS[1])


def write_pictures(folder: Path) -> None:
    """The pictures that the twins load: photographs that come with scikit-image."""
    for name, picture in zip(PICTURES, photographs(), strict=True):
        picture.save(folder / name)


def photographs() -> tuple[Image.Image, Image.Image]:
    """A person and a cat."""
    from PIL import Image
    from skimage import data

    return Image.fromarray(data.astronaut()), photograph()  # Eileen Collins, by NASA


def write_face_models(models: Path) -> None:
    """Stand-ins for InsightFace's model pack; they know that person."""
    from tools.face_models import ensure_pack

    ensure_pack(models / "insightface", "buffalo_l")


def demo_twin(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph in API format with the models of random weights and photographs."""
    return with_pictures(configured(graph), PICTURES)


def with_pictures(graph: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The graph with these pictures in its Load Image nodes, in turn."""
    loaders = [node["inputs"] for node in graph.values() if node["class_type"] == "LoadImage"]
    for number, inputs in enumerate(loaders):
        inputs["image"] = names[number % len(names)]
    return graph


def thumbnail(server: ComfyServer, graph: Graph, twin: dict[str, Any]) -> bool:
    """Run a graph and keep its pictures beside its template; whether it ran."""
    from PIL import Image, ImageOps

    say(graph.name)
    try:
        files = server.pictures(twin, kind="temp" if graph.name == FACES else "output")
    except ServerError as error:
        say(f"  {error}")
        return False
    pictures = [frame for file in files for frame in frames(Image.open(io.BytesIO(file)))]
    words = ImageOps.pad(Image.open(DOCTOR).convert("RGB"), (THUMBNAIL, THUMBNAIL), color="#222")
    sheet = side_by_side(pictures or [words])  # one of them shows words only
    loaded = [n["inputs"]["image"] for n in twin.values() if n["class_type"] == "LoadImage"]
    paste_given(sheet, [server.base / "input" / name for name in dict.fromkeys(loaded)])
    keep(sheet, graph)
    return True


def keep(sheet: Image.Image, graph: Graph) -> None:
    """Write a thumbnail beside its template, and where a help page shows it."""
    for quality in (88, 75, 60, 40):
        sheet.save(FOLDER / f"{graph.file}.jpg", quality=quality)
        if (FOLDER / f"{graph.file}.jpg").stat().st_size <= THUMBNAIL_BYTES:
            break
    RESULTS.mkdir(exist_ok=True)
    for node in (node for node, template in HELP.items() if template == graph.name):
        shutil.copy(FOLDER / f"{graph.file}.jpg", RESULTS / f"{node}.jpg")


def given_to(graph: Graph) -> Image.Image:
    """The pictures that a graph loads, with an arrow to the name of its base: no trained
    model here is one, so there is no result to show."""
    from PIL import Image, ImageDraw, ImageFont

    loaders = sum(node.kind == "LoadImage" for node in graph.nodes)
    sheet = side_by_side([picture.convert("RGB") for picture in photographs()[:loaders]])
    band = Image.new("RGB", (THUMBNAIL, BAND), "#222")
    text, font = f"\u2192 {graph.base}", ImageFont.load_default(BAND // 2)
    ImageDraw.Draw(band).text((THUMBNAIL // 2, BAND // 2), text, "white", font, anchor="mm")
    sheet.paste(band, (0, THUMBNAIL - BAND))
    return sheet


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The middle of each, together a square."""
    from PIL import Image

    side = THUMBNAIL // len(pictures)
    sheet = Image.new("RGB", (side * len(pictures), THUMBNAIL), "black")
    for column, picture in enumerate(pictures):
        scale = THUMBNAIL / picture.height
        grown = picture.resize((round(picture.width * scale), THUMBNAIL))
        left = (grown.width - side) // 2
        sheet.paste(grown.crop((left, 0, left + side, THUMBNAIL)), (side * column, 0))
    return sheet


def paste_given(sheet: Image.Image, files: Sequence[Path]) -> None:
    """Small in the corner, one beside the other."""
    from PIL import Image, ImageOps

    for column, file in enumerate(files):
        small = ImageOps.fit(Image.open(file).convert("RGB"), (INSET, INSET))
        framed = ImageOps.expand(small, EDGE, "white")
        left, side = EDGE + column * framed.width, framed.height
        sheet.paste(framed, (left, THUMBNAIL - EDGE - side))


def frames(picture: Image.Image) -> list[Image.Image]:
    """A picture; of an animation the first, the middle and the last one."""
    last = getattr(picture, "n_frames", 1) - 1
    shown = []
    for number in sorted({0, last // 2, last}):
        picture.seek(number)
        shown.append(picture.convert("RGB"))
    return shown


def with_overlay(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph, saving the attention map that a program is not shown otherwise."""
    maps = [key for key, node in graph.items() if node["class_type"] == "IPAdapterAttentionMap"]
    inputs = {f"overlay {key}": {"images": [key, 0], "filename_prefix": "map"} for key in maps}
    saved = {key: {"class_type": "SaveImage", "inputs": value} for key, value in inputs.items()}
    return {**graph, **saved}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
