"""How well pictures follow their image prompts and captions: CLIP-I and CLIP-T, as in the paper.

    python scripts/quality.py                                   # the demo models, a few scenes
    python scripts/quality.py FOLDER --models MODELS --checkpoint sd15.safetensors \\
        --clip-vision ViT-H.safetensors --adapter ip-adapter_sd15.safetensors --judge CLIP-FOLDER

FOLDER has pictures, each with its caption in a .txt file of the same name. For every picture the
image prompt alone makes four samples in a real ComfyUI, through this pack's nodes. CLIP-I is the
mean cosine between the CLIP embeddings of samples and prompt, CLIP-T between samples and caption
(arXiv 2308.06721, table 1: 0.828 and 0.588 with ViT-L/14 on COCO 2017's 5,000 validation pictures,
DDIM, 50 steps, guidance 7.5). The judge is a Hugging Face CLIP folder, such as
clip-vit-large-patch14; without one, the demo models judge themselves.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.comfy_server import ComfyServer, ServerError, make_base
from tools.environment import NAME, ROOT, SetUpError, ready, say
from tools.graph import Base, Graph
from tools.workflow_formats import api_format

if TYPE_CHECKING:
    from PIL.Image import Image

OUTPUT = ROOT / "output" / "quality"
MIRRORED = "mirrored-"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
SCALINGS = ("K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")
COMBINES = ("concat", "add", "average", "norm average")


@dataclass(frozen=True)
class Setting:
    """One row of the table. With `combine`, the mirrored picture is a second reference."""

    adapter: str
    weight: float = 1.0
    scaling: str = "V only"
    combine: str = ""

    @property
    def name(self) -> str:
        """For the table."""
        parts = [f"weight {self.weight:g}"]
        parts += [self.scaling] if self.scaling != "V only" else []
        parts += [f"two pictures, {self.combine}"] if self.combine else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Pair:
    """A picture of the folder and its caption."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Score:
    """Mean cosines of one setting."""

    setting: Setting
    clip_i: float
    clip_t: float
    samples: int


def settings(adapters: Sequence[str], sweep: bool) -> Iterator[Setting]:
    """Every adapter at weight 1; with `sweep` each of the other choices in turn."""
    for adapter in adapters:
        plain = Setting(adapter)
        yield plain
        if sweep:
            yield from (replace(plain, weight=weight) for weight in WEIGHTS if weight != 1.0)
            yield from (replace(plain, scaling=scaling) for scaling in SCALINGS)
            yield from (replace(plain, combine=combine) for combine in COMBINES)


def pairs_of(folder: Path, limit: int) -> list[Pair]:
    """The pictures of a folder that have captions, in order of name."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    pairs = [
        Pair(path, path.with_suffix(".txt").read_text("utf-8").strip())
        for path in found
        if path.with_suffix(".txt").is_file()
    ]
    if not pairs:
        raise SetUpError(f"{folder} has no picture with a caption in a .txt file of the same name")
    return pairs[:limit] if limit else pairs


def graph_of(setting: Setting, picture: str, options: argparse.Namespace) -> Graph:
    """The graph of one picture: the image prompt alone, several samples."""
    sampler = {
        "seed": options.seed,
        "steps": options.steps,
        "cfg": options.cfg,
        "sampler_name": options.sampler,
        "scheduler": "normal",
    }
    size = {"width": options.size, "height": options.size, "batch_size": options.samples}
    texts = options.prompt, options.checkpoint, options.negative
    base = Base.of(Graph("quality"), *texts, sampler, **size)
    names = [picture, *([MIRRORED + picture] if setting.combine else [])]
    images = [base.graph.add("LoadImage", image=name)["IMAGE"] for name in names]
    inputs: dict[str, Any] = {"weight": setting.weight, "embeds_scaling": setting.scaling}
    if setting.combine:
        pair = base.graph.add("ImageBatch", image1=images[0], image2=images[1])
        images = [pair["IMAGE"]]
        inputs["combine_embeds"] = setting.combine
    base.save(base.prompted(setting.adapter, options.clip_vision, images[0], **inputs))
    return base.graph


def measure(options: argparse.Namespace) -> list[Score]:
    """Start a server, make all samples, judge them."""
    from tools import judges

    if options.folder is None:
        folder = judges.write_scenes(Path(options.work) / "scenes", options.limit or 6)
        judge: judges.Judge = judges.DemoJudge()
    else:
        folder, judge = options.folder, judges.ClipJudge(options.judge)
    pairs = pairs_of(folder, options.limit)
    base = Path(options.work) / "base"
    make_base(base, {NAME: ROOT}, options.models)
    names = [prepare(pair.path, base / "input", number) for number, pair in enumerate(pairs)]
    with ComfyServer(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base) as server:
        return [
            score(server, setting, list(zip(pairs, names, strict=True)), judge, options)
            for setting in settings(options.adapter, options.sweep)
        ]


def prepare(picture: Path, inputs: Path, number: int) -> str:
    """Put a picture and its mirror image where the server's LoadImage finds them."""
    from PIL import Image, ImageOps

    name = f"{number:05}.png"
    opened = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    opened.save(inputs / name)
    ImageOps.mirror(opened).save(inputs / (MIRRORED + name))
    return name


def score(
    server: ComfyServer,
    setting: Setting,
    pairs: Sequence[tuple[Pair, str]],
    judge: Any,
    options: argparse.Namespace,
) -> Score:
    """Sample every picture with one setting and judge the samples."""
    from PIL import Image

    began, by_image, by_text = time.monotonic(), [], []
    for pair, name in pairs:
        files = server.pictures(
            api_format(graph_of(setting, name, options), server.info), seconds=3600
        )
        made = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        with Image.open(pair.path) as opened:
            picture = opened.convert("RGB")
        by_image += judge.image_similarity(made, picture)
        by_text += judge.text_similarity(made, pair.caption)
    result = Score(setting, mean(by_image), mean(by_text), len(by_image))
    seconds = time.monotonic() - began
    say(
        f"{setting.adapter}, {setting.name}: CLIP-I {result.clip_i:.3f}, CLIP-T "
        f"{result.clip_t:.3f} ({result.samples} samples, {seconds:.0f} s)"
    )
    return result


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(scores: Sequence[Score]) -> str:
    """A Markdown table."""
    rows = ["| adapter | setting | CLIP-I | CLIP-T | samples |", "|---|---|---|---|---|"]
    for one in scores:
        name = f"{one.setting.adapter} | {one.setting.name}"
        rows.append(f"| {name} | {one.clip_i:.3f} | {one.clip_t:.3f} | {one.samples} |")
    return "\n".join(rows)


def write(scores: Sequence[Score], output: Path) -> None:
    """quality.md, quality.csv and quality.png."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "quality.md").write_text(table(scores) + "\n", "utf-8")
    with (output / "quality.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*asdict(scores[0].setting), "clip_i", "clip_t", "samples"])
        for one in scores:
            values = asdict(one.setting).values()
            writer.writerow([*values, one.clip_i, one.clip_t, one.samples])
    plot(scores).save(output / "quality.png")


def plot(scores: Sequence[Score]) -> Image:
    """A bar for CLIP-I and one for CLIP-T per setting, one row each."""
    from PIL import Image, ImageDraw, ImageFont

    row, left, width = 34, 360, 420
    font = ImageFont.load_default(size=13)
    picture = Image.new("RGB", (left + width + 70, row * len(scores) + 40), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((left, 10), "CLIP-I", "#0b62c4", font)
    pen.text((left + 70, 10), "CLIP-T", "#c4620b", font)
    for number, one in enumerate(scores):
        top = 34 + row * number
        label = f"{Path(one.setting.adapter).stem}, {one.setting.name}"
        pen.text((8, top + 6), label[:56], "#24292f", font)
        for offset, value, colour in ((0, one.clip_i, "#0b62c4"), (13, one.clip_t, "#c4620b")):
            end = left + max(width * value, 1)
            pen.rectangle((left, top + offset, end, top + offset + 10), colour)
            pen.text((end + 6, top + offset - 3), f"{value:.3f}", "#24292f", font)
    return picture


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", help="pictures with captions (default: demo scenes)")
    add("--models", type=Path, help="a ComfyUI models folder (default: the demo models)")
    add("--checkpoint", default="demoset.safetensors")
    add("--clip-vision", default="demoset")
    add("--adapter", nargs="+", help="one or more files in models/ipadapter")
    add("--judge", type=Path, help="a Hugging Face CLIP folder; needed with FOLDER")
    add("--sweep", action="store_true", help="also vary weight, scaling and combine mode")
    add("--limit", type=int, default=0, help="use only the first pictures")
    add("--samples", type=int, default=4, help="samples per picture")
    add("--prompt", default="", help="text beside the image prompt (the paper: none)")
    add("--negative", default="")
    add("--size", type=int, help="side of the samples (default: 512, demo 128)")
    add("--steps", type=int, help="default: 50, demo 10")
    add("--cfg", type=float, help="default: 7.5, demo 3")
    add("--sampler", default="ddim")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=OUTPUT, help="folder for table and plot")
    add("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    demo = options.folder is None
    if not demo and not (options.judge and options.models and options.adapter):
        parser.error("FOLDER needs --models, --adapter and --judge too")
    options.size = options.size or (128 if demo else 512)
    options.steps = options.steps or (10 if demo else 50)
    options.cfg = options.cfg or (3.0 if demo else 7.5)
    return options


def inside(options: argparse.Namespace) -> int:
    """Measure in the environment; 0 if the table is written."""
    options.work = tempfile.mkdtemp(prefix="image-prompt-quality-")
    try:
        if options.folder is None:
            from tools import demo_models

            options.models = demo_models.demo_models()
            options.adapter = [demo_models.STANDARD, demo_models.PLUS]
        scores = measure(options)
        write(scores, options.output)
    except (ServerError, SetUpError, OSError) as error:
        say(f"error: {error}")
        return 1
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    say(table(scores))
    say(str(options.output / "quality.png"))
    return 0


def main() -> None:
    """Set up the environment, then go on inside it."""
    options = parse(sys.argv[1:])
    if options.inside:
        sys.exit(inside(options))
    ready().become([__file__, "--inside", *sys.argv[1:]])


if __name__ == "__main__":
    main()
