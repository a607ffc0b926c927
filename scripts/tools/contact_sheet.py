"""The demo's contact sheet: what is on it, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .demo_models import CHECKPOINT, CONTROLNET, ENCODER, LORA, PLUS, SIZE, STANDARD
from .graph import Base, Graph, Link, Node

if TYPE_CHECKING:
    from PIL.Image import Image

SHUFFLED = "demoset-shuffled.safetensors"
REFERENCE, SECOND, PHOTO = "reference.png", "second.png", "photograph.png"
OUTLINES = "outlines.png"
LEFT, RIGHT = "mask-left.png", "mask-right.png"
TEXT = "a blue star on a green background"
EDITOR_NOTE = """The same seed without and with an image prompt. Press *Run*. Then choose a picture
of your own in *Image prompt*, change *weight*, or write *a blue star on a green background* into
*Prompt*. These models are tiny: they know coloured shapes on coloured backgrounds, 128 pixels
wide."""
SAMPLER = {"seed": 0, "steps": 12, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.2)
ROW_TITLES = (
    "The picture as the prompt",
    "Weight, with the text below the sheet",
    "When and where",
    "Another picture, other adapters",
    "With a ControlNet for outlines and a LoRA for night",
)
PANEL, LABEL, MARGIN = 176, 24, 14
SAMPLES = 4  # of the pictures that the figures are made of

Model = Callable[[Base], Node]


@dataclass(frozen=True)
class Panel:
    """A picture to sample: its place on the sheet, the MODEL that makes it, its words.

    measured: whether the figures beside the sheet speak of it; then it is sampled several times.
    outlined: whether a ControlNet holds it to the outlines of `OUTLINES`.
    """

    row: int
    title: str
    model: Model
    text: str = ""
    measured: bool = False
    outlined: bool = False


@dataclass(frozen=True)
class Given:
    """A picture that is only shown."""

    row: int
    title: str
    file: str


def plain(base: Base) -> Node:
    """The MODEL without an image prompt."""
    return base.checkpoint


def prompted(
    file: str = REFERENCE, adapter: str = STANDARD, before: Model = plain, **inputs: Any
) -> Model:
    """The MODEL with one image prompt more than before."""
    return lambda base: base.prompted(
        adapter, ENCODER, loaded(base, file), model=before(base)["MODEL"], **inputs
    )


def loaded(base: Base, file: str) -> Link:
    """A file of the input folder, as IMAGE."""
    return base.graph.once("LoadImage", image=file)["IMAGE"]


def masked(file: str, mask: str, before: Model = plain) -> Model:
    """An image prompt that acts in one half of the picture."""

    def build(base: Base) -> Node:
        area = base.graph.add("LoadImageMask", image=mask, channel="red")["MASK"]
        return prompted(file, before=before, attn_mask=area)(base)

    return build


def both_references(base: Base) -> Node:
    """Two pictures as one image prompt."""
    pictures = {"image1": loaded(base, REFERENCE), "image2": loaded(base, SECOND)}
    pair = base.graph.add("ImageBatch", **pictures)["IMAGE"]
    return base.prompted(STANDARD, ENCODER, pair, combine_embeds="average")


def by_night(base: Base) -> Node:
    """The MODEL with the LoRA."""
    model = base.checkpoint["MODEL"]
    return base.graph.add("LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=1.0)


def panels() -> Iterator[Panel | Given]:
    """Everything on the sheet, in order."""
    yield Given(0, "reference", REFERENCE)
    yield Panel(0, "text only", plain, TEXT, measured=True)
    yield Panel(0, "image only", prompted(), measured=True)
    yield Panel(0, "text and image", prompted(weight=0.5), TEXT, measured=True)
    yield Given(0, "second reference", SECOND)
    yield Panel(0, "two references, average", both_references)
    for weight in WEIGHTS:
        yield Panel(1, f"weight {weight:g}", prompted(weight=weight), TEXT)
    yield Panel(2, "first 20 % of the steps", prompted(end_at=0.2))
    yield Panel(2, "first half", prompted(end_at=0.5))
    yield Panel(2, "second half", prompted(start_at=0.5))
    yield Panel(2, "left half masked in", masked(REFERENCE, LEFT))
    yield Panel(2, "one left, one right", masked(SECOND, RIGHT, masked(REFERENCE, LEFT)))
    yield Panel(2, "K', V' shuffled: broken", prompted(adapter=SHUFFLED), measured=True)
    yield Panel(3, "reference, Plus adapter", prompted(adapter=PLUS), measured=True)
    yield Panel(3, "second, Plus adapter", prompted(SECOND, PLUS))
    yield Given(3, "a photograph", PHOTO)
    yield Panel(3, "standard adapter", prompted(PHOTO))
    yield Panel(3, "Plus adapter", prompted(PHOTO, PLUS))
    yield Panel(3, "Plus and text", prompted(PHOTO, PLUS, weight=0.6), TEXT)
    yield Given(4, "outlines from", OUTLINES)
    yield Panel(4, "ControlNet, text", plain, TEXT, outlined=True)
    yield Panel(4, "ControlNet, reference", prompted(), outlined=True)
    yield Panel(4, "LoRA, text", by_night, TEXT)
    yield Panel(4, "LoRA, reference", prompted(before=by_night))
    yield Panel(4, "all three", prompted(before=by_night), outlined=True)


def graph_of(panel: Panel, steps: int) -> Graph:
    """The graph of one panel."""
    size = {"width": SIZE, "height": SIZE, "batch_size": SAMPLES if panel.measured else 1}
    sampler = {**SAMPLER, "seed": 7, "steps": steps}
    base = Base.of(Graph("demo"), panel.text, CHECKPOINT, "", sampler, **size)
    if panel.outlined:
        base.positive, base.negative = outlined(base)
    base.save(panel.model(base))
    return base.graph


def outlined(base: Base) -> tuple[Link, Link]:
    """Both conditionings with the ControlNet and the outlines of a drawing."""
    add = base.graph.add
    lines = add("Canny", image=loaded(base, OUTLINES), low_threshold=0.4, high_threshold=0.8)
    control = add("ControlNetLoader", control_net_name=CONTROLNET)
    held = add(
        "ControlNetApplyAdvanced",
        positive=base.positive,
        negative=base.negative,
        control_net=control["CONTROL_NET"],
        image=lines["IMAGE"],
    )
    return held["positive"], held["negative"]


def editor_graph() -> Graph:
    """A workflow for the editor: the same seed without and with an image prompt."""
    graph = Graph("image prompt", EDITOR_NOTE)
    # An empty negative prompt: the models know no such words.
    base = Base.of(graph, "", CHECKPOINT, "", SAMPLER, width=SIZE, height=SIZE)
    adapter = graph.add("IPAdapterModelLoader", ipadapter_file=STANDARD)
    image = graph.picture("Image prompt", REFERENCE)
    encoder = graph.add("IPAdapterImageEncoderLoader", clip_vision_name=ENCODER)
    base.compare(ipadapter=adapter["IPADAPTER"], image=image, clip_vision=encoder["CLIP_VISION"])
    return graph


def draw(rows: Sequence[Sequence[tuple[str, Image]]], notes: Sequence[str]) -> Image:
    """Rows of pictures, each under its title, and lines of text below."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    title, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    height = PANEL + LABEL * 2 + 8
    width = 2 * MARGIN + max(len(row) for row in rows) * PANEL
    size = (width, len(rows) * height + 2 * MARGIN + 18 * len(notes))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = MARGIN + number * height
        pen.text((MARGIN + 3, top), ROW_TITLES[number], "#24292f", title)
        for column, (label, picture) in enumerate(row):
            left = MARGIN + column * PANEL
            pen.text((left + 3, top + LABEL), label, "#57606a", small)
            fitted = ImageOps.fit(picture.convert("RGB"), (PANEL - 6, PANEL - 6))
            sheet.paste(fitted, (left + 3, top + LABEL + 18))
    for number, note in enumerate(notes):
        top = size[1] - MARGIN - 18 * (len(notes) - number)
        pen.text((MARGIN + 3, top), note, "#24292f", small)
    return sheet
