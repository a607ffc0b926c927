"""Sample captions through ComfyUI's own loader, KSampler and VAE, and judge the images.

    python scripts/python.py scripts/demoset measure MODELS --sheet sheet.png

Colour errors are mean absolute differences with channels from -1 to 1, so on a scale of 0 to 2.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..build import CHECKPOINT
from ..host import use_host
from ..world import scenes


@dataclass(frozen=True)
class Wish:
    """A caption and what it asks for (None: left open)."""

    caption: str
    background: str | None
    colour: str | None
    shape: str | None


def wishes(count: int, seed: int = 5) -> list[Wish]:
    """Full one-object captions, each shape and colour in turn."""
    rng = scenes.scene_rng(seed, 0)
    names, drawn = list(scenes.COLOURS), []
    for i in range(count):
        colour, background = (names[j] for j in rng.permutation(len(names))[:2])
        shape = scenes.SHAPES[i % len(scenes.SHAPES)]
        drawn.append(
            Wish(f"a {colour} {shape} on a {background} background", background, colour, shape)
        )
    return drawn


@dataclass(frozen=True, eq=False)
class Base:
    """The demo base as the host's loader gives it."""

    nodes: ModuleType
    model: Any
    clip: Any
    vae: Any

    def sample(
        self, captions: list[str], seed: int, cfg: float = 4.0, steps: int = 20, model: Any = None
    ) -> torch.Tensor:
        """One image per caption, (B, 3, 128, 128) in 0..1; Euler; noise by seed and index."""
        empty = self._encode("")
        images = []
        for index, caption in enumerate(captions):
            latent = {"samples": torch.zeros(1, 4, scenes.SIZE // 8, scenes.SIZE // 8)}
            (result,) = self.nodes.KSampler().sample(
                model or self.model, seed + index, steps, cfg, "euler", "normal",
                self._encode(caption), empty, latent,
            )  # fmt: skip
            images.append(self.vae.decode(result["samples"]).movedim(-1, 1))
        return torch.cat(images)

    def _encode(self, caption: str) -> list:
        return self.nodes.CLIPTextEncode().encode(self.clip, caption)[0]


def load_base(path: Path) -> Base:
    """Load the checkpoint with the host's guessing loader (call `use_host` before)."""
    import comfy.sd
    import comfy.utils

    import nodes

    comfy.utils.PROGRESS_BAR_ENABLED = False
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    return Base(nodes, model, clip, vae)


def judge(images: torch.Tensor, asked: list[Wish]) -> dict[str, float]:
    """Mean background and object colour errors, and the share of shapes recognised."""
    ground, colours, shapes = [], [], []
    for image, wish in zip(images.float().cpu(), asked, strict=True):
        if wish.background is not None:
            ground.append(scenes.colour_error(scenes.background_colour(image), wish.background))
        if wish.colour is not None:
            found = scenes.object_colour(image)
            missing = scenes.background_colour(image)
            colours.append(scenes.colour_error(missing if found is None else found, wish.colour))
        if wish.shape is not None:
            shapes.append(float(scenes.detected_shape(image) == wish.shape))
    figures = {
        "background error": ground,
        "object colour error": colours,
        "shape recognised": shapes,
    }
    return {name: sum(values) / len(values) for name, values in figures.items() if values}


def main() -> None:
    """Command line: figures with and without the captions, and a sheet of images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, help="the folder that `build` wrote")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_host()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = wishes(options.count)
    with torch.inference_mode():
        base = load_base(options.models / CHECKPOINT)
        told = base.sample([wish.caption for wish in asked], 1000, options.cfg)
        untold = base.sample([""] * min(16, len(asked)), 1000, options.cfg)
    for name, images in (("captions", told), ("no caption", untold)):
        figures = judge(images, asked[: len(images)])
        logging.info("%-11s %s", name, {key: round(value, 3) for key, value in figures.items()})
    if options.sheet:
        scenes.save_png(scenes.contact_sheet(torch.cat([told, untold]), 8), options.sheet)
