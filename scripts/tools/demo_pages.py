"""What the demo's server shows in the browser: the pack with templates that run on the demo models,
and a link to the first of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from .comfy_server import ComfyServer, link_folder, make_base
from .contact_sheet import REFERENCE
from .demo_models import CHECKPOINT, ENCODER, KINDS, SETTINGS, STANDARD
from .environment import NAME, ROOT
from .graph import Base, Graph
from .kit import Kit
from .layout import DEMO_SECTIONS
from .workflow_formats import editor_format, write

FIRST = "00_Start_here"  # as 1.32.9 takes it in an address: no spaces
NOTE = """**1** Put your own picture into *Image prompt*. **2** Press *Run*. **3** Compare: the same
seed without and with your picture. Then change *weight*, or write *a blue star on a green
background* into *Prompt*. These models are tiny: they know coloured shapes on coloured backgrounds,
128 pixels wide."""
OWN_NOTE = """**1** Put your own picture into *Image prompt*. **2** Press *Run*. **3** Compare: the
same seed without and with your picture. Then change *weight* and *Prompt*."""
LEFT_OUT = ("face",)  # no model here knows faces
# All that ComfyUI needs of the pack, without its own templates.
PACK = ("__init__.py", "nodes.py", "pyproject.toml", "ipadapter", "locales", "web")
# Else the list of templates opens over the graph, and a map lies on it.
SETTLED = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
_MODELS = ("CheckpointLoaderSimple", "IPAdapterModelLoader", "IPAdapterImageEncoderLoader")
QUIET = (*_MODELS, "EmptyLatentImage", "VAEDecode")


def make_demo_base(base: Path, models: Path, copied: bool) -> None:
    """The server's folders: the pack with an empty folder of templates; the models linked, or
    copied where what is saved beside them must not stay."""
    make_base(base, {}, None if copied else models)
    if copied:
        shutil.copytree(models, base / "models", dirs_exist_ok=True)
    pack = base / "custom_nodes" / NAME
    (pack / "workflows").mkdir(parents=True)
    for name in PACK:
        if (ROOT / name).is_dir():
            link_folder(ROOT / name, pack / name)
        else:
            shutil.copy(ROOT / name, pack / name)
    user = base / "user" / "default"
    user.mkdir(parents=True)
    (user / "comfy.settings.json").write_text(json.dumps(SETTLED), "utf-8")


def write_templates(server: ComfyServer, kit: Kit, others: Iterable[Graph]) -> str:
    """Write the demo's templates; returns the address that opens the first."""
    folder = server.base / "custom_nodes" / NAME / "workflows"
    first = editor_format(first_graph(kit), server.info, DEMO_SECTIONS)
    write(folder / f"{FIRST}.json", first)
    for graph in others:
        if graph.name not in LEFT_OUT and not graph.base:
            write(folder / f"{graph.file}.json", editor_format(on_demo_models(graph), server.info))
            thumbnail = ROOT / "workflows" / f"{graph.file}.jpg"
            if thumbnail.exists():
                shutil.copy(thumbnail, folder)
    return f"{server.url}/?template={FIRST}&source={NAME}"


def first_graph(kit: Kit) -> Graph:
    """The same seed without and with an image prompt."""
    graph = Graph("Image prompt", NOTE if kit.extras else OWN_NOTE)
    image = graph.picture("Image prompt", REFERENCE)
    text = "" if kit.extras else kit.text
    size = {"width": kit.side, "height": kit.side}
    base = Base.of(graph, text, CHECKPOINT, kit.negative, kit.sampler, **size)
    adapter = graph.add("IPAdapterModelLoader", ipadapter_file=STANDARD)
    encoder = graph.add("IPAdapterImageEncoderLoader", clip_vision_name=ENCODER)
    base.compare(ipadapter=adapter["IPADAPTER"], image=image, clip_vision=encoder["CLIP_VISION"])
    for node in graph.nodes:
        node.collapsed = node.kind in QUIET or node.title == "Negative prompt"
    return kit.fitted(graph)


def on_demo_models(graph: Graph) -> Graph:
    """A template with the demo's models, pictures and size."""
    for node in graph.nodes:
        kept = {} if node.kind in KINDS else node.inputs
        settings = SETTINGS.get(node.kind, {})
        node.kind = KINDS.get(node.kind, node.kind)
        node.inputs = kept | settings
        if node.kind == "LoadImage":
            node.inputs = {"image": REFERENCE}
    return graph
