"""The demo's contact sheet: what is on it, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .demo_models import CHECKPOINT, CONTROLNET, ENCODER, LORA, PLUS, STANDARD
from .graph import Base, Graph, Link, Node, Outputs
from .kit import TEXT, Kit

if TYPE_CHECKING:
    from PIL.Image import Image

SHUFFLED = "demoset-shuffled.safetensors"
REFERENCE, SECOND = "reference.png", "second.png"
OUTLINES = "outlines.png"
LEFT, RIGHT = "mask-left.png", "mask-right.png"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.2)
ROW_TITLES = (
    "The same seed without words: without and with your picture",
    "Weight, with the words below",
    "Where and when it acts",
    "Beside a ControlNet for outlines and a LoRA for night",
)
COLUMNS = 6
PANEL, LABEL, MARGIN, NOTE = 176, 24, 14, 18
SAMPLES = 4  # of the pictures that the figures are made of

Model = Callable[[Base], Outputs]


@dataclass(frozen=True)
class Panel:
    """A picture to sample: its place on the sheet, the MODEL that makes it, its words.

    samples: how many pictures, with seeds of their own; the first is shown.
    outlined: whether a ControlNet holds it to the outlines of `OUTLINES`.
    """

    row: int
    title: str
    model: Model
    text: str = ""
    samples: int = 1
    outlined: bool = False


@dataclass(frozen=True)
class Given:
    """A picture that is only shown."""

    row: int
    title: str
    file: str


def plain(base: Base) -> Outputs:
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

    def build(base: Base) -> Outputs:
        area = base.graph.add("LoadImageMask", image=mask, channel="red")["MASK"]
        return prompted(file, before=before, attn_mask=area)(base)

    return build


def by_night(base: Base) -> Node:
    """The MODEL with the LoRA."""
    model = base.checkpoint["MODEL"]
    return base.graph.add("LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=1.0)


def panels(kit: Kit) -> Iterator[Panel | Given]:
    """Everything on the sheet, in order."""
    yield Given(0, "your picture", REFERENCE)
    yield Panel(0, "without it", plain)
    yield Panel(0, "with it", prompted())
    for weight in WEIGHTS:
        yield Panel(1, f"weight {weight:g}", prompted(weight=weight), kit.text)
    yield Panel(2, "mask: left half", masked(REFERENCE, LEFT))
    yield Given(2, "a second picture", SECOND)
    yield Panel(2, "one left, one right", masked(SECOND, RIGHT, masked(REFERENCE, LEFT)))
    yield Panel(2, "end_at 0.2", prompted(end_at=0.2))
    yield Panel(2, "end_at 0.5", prompted(end_at=0.5))
    yield Panel(2, "start_at 0.5", prompted(start_at=0.5))
    if kit.extras:
        yield Given(3, "outlines from", OUTLINES)
        yield Panel(3, "ControlNet, words", plain, kit.text, outlined=True)
        yield Panel(3, "ControlNet, picture", prompted(), outlined=True)
        yield Panel(3, "LoRA, words", by_night, kit.text)
        yield Panel(3, "LoRA, picture", prompted(before=by_night))
        yield Panel(3, "all three", prompted(before=by_night), outlined=True)


def controls() -> list[Panel]:
    """What shows that the adapter is what acts: their distances from the reference are measured."""
    models = {
        "words only": (plain, TEXT),
        "picture only": (prompted(), ""),
        "words and picture, weight 0.5": (prompted(weight=0.5), TEXT),
        "picture only, Plus": (prompted(adapter=PLUS), ""),
        "K', V' shuffled": (prompted(adapter=SHUFFLED), ""),
    }
    return [Panel(0, title, *made, samples=SAMPLES) for title, made in models.items()]


def graph_of(panel: Panel, steps: int, kit: Kit) -> Graph:
    """The graph of one panel."""
    size = {"width": kit.side, "height": kit.side, "batch_size": panel.samples}
    sampler = {**kit.sampler, "seed": 7, "steps": steps}
    base = Base.of(Graph("demo"), panel.text, CHECKPOINT, kit.negative, sampler, **size)
    if panel.outlined:
        base.positive, base.negative = outlined(base)
    base.save(panel.model(base))
    return kit.fitted(base.graph)


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


def draw(rows: Sequence[Sequence[tuple[str, Image]]], note: str) -> Image:
    """Rows of pictures, each under its title, the first one large, and a line of text below."""
    from PIL import Image, ImageDraw, ImageFont

    title, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    sides = [COLUMNS * PANEL // len(rows[0]), *(PANEL for _ in rows[1:])]
    heights = [side + LABEL * 2 + 8 for side in sides]
    size = (2 * MARGIN + COLUMNS * PANEL, sum(heights) + 2 * MARGIN + NOTE)
    sheet = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for row, name, side, height in zip(rows, ROW_TITLES, sides, heights, strict=False):
        pen.text((MARGIN + 3, top), name, "#24292f", title)
        for column, (label, picture) in enumerate(row):
            left = MARGIN + column * side
            pen.text((left + 3, top + LABEL), label, "#57606a", small)
            sheet.paste(_fitted(picture, side - 6), (left + 3, top + LABEL + NOTE))
        top += height
    pen.text((MARGIN + 3, top), note, "#24292f", small)
    return sheet


def _fitted(picture: Image, side: int) -> Image:
    """The picture's middle square."""
    from PIL import ImageOps

    return ImageOps.fit(picture.convert("RGB"), (side, side))
