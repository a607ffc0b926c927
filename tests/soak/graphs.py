"""The graphs of the soak: a small picture with and without an image prompt, and long
work to interrupt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.models.adapters import synthetic_adapter
from support.models.badfiles import FOUR_LAYERS, write_adapter, write_tiny_encoder
from support.references.interface import defaults

from ipadapter.adapters.families import Family

ADAPTERS = ("standard.safetensors", "plus.safetensors")
TYPES = ("linear", "ease in", "style transfer", "style transfer precise", "composition")
SAVED = "soak_saved"  # how the names of saved files begin
Graph = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What changes from prompt to prompt. Without an adapter, only the seed matters."""

    weight: float = 0.8
    colour: int = 0x4080C0
    mask: float = 1.0
    side: int = 64  # of the mask
    adapter: str = ADAPTERS[0]
    end_at: float = 1.0
    weight_type: str = "linear"
    seed: int = 5

    @classmethod
    def drawn(cls, dice: random.Random) -> Settings:
        """Any of them."""
        return cls(
            round(dice.choice((-0.3, 1)) * dice.uniform(0.1, 3.0), 3),
            dice.randrange(1 << 24),
            round(dice.uniform(0.1, 1.0), 3),
            dice.choice((32, 64, 96)),
            dice.choice(ADAPTERS),
            round(dice.uniform(0.5, 1.0), 3),
            dice.choice(TYPES),
            dice.randrange(1 << 30),
        )


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node in API format."""
    return {"class_type": class_type, "inputs": inputs}


def plain_graph(settings: Settings, steps: int = 2) -> Graph:
    """A small picture from words alone."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="random.safetensors"),
        "6": node("CLIPTextEncode", clip=["1", 1], text="a photograph"),
        "7": node("CLIPTextEncode", clip=["1", 1], text="blurry"),
        "8": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "10": node(
            "KSampler",
            model=["1", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["8", 0],
            seed=settings.seed,
            steps=steps,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "11": node("VAEDecode", samples=["10", 0], vae=["1", 2]),
        "12": node("SaveImage", images=["11", 0], filename_prefix="soak"),
    }


def graph(settings: Settings, steps: int = 2) -> Graph:
    """The same with an image prompt."""
    plain = plain_graph(settings, steps)
    plain["10"]["inputs"]["model"] = ["9", 0]
    side = settings.side
    given = {
        **defaults("IPAdapterAdvanced"),
        "weight": settings.weight,
        "weight_type": settings.weight_type,
        "end_at": settings.end_at,
    }
    return plain | {
        "2": node("IPAdapterModelLoader", ipadapter_file=settings.adapter),
        "3": node("IPAdapterImageEncoderLoader", clip_vision_name="tiny"),
        "4": node("EmptyImage", width=48, height=48, batch_size=1, color=settings.colour),
        "5": node("SolidMask", value=settings.mask, width=side, height=side),
        "9": node(
            "IPAdapterAdvanced",
            model=["1", 0],
            ipadapter=["2", 0],
            clip_vision=["3", 0],
            image=["4", 0],
            attn_mask=["5", 0],
            **given,
        ),
    }


def sampling(settings: Settings) -> Graph:
    """Seconds in the sampler."""
    return graph(settings, steps=400)


def encoding(settings: Settings) -> Graph:
    """Seconds in the image encoder: many pictures, one at a time."""
    made = graph(settings)
    made["4"] = node("SoakPictures", count=1000, seed=settings.seed)
    made["9"]["class_type"] = "IPAdapterBatch"
    made["9"]["inputs"]["encode_batch_size"] = 1
    return made


def training(settings: Settings) -> Graph:
    """Minutes in IPAdapter Train, and then a file."""
    made = graph(settings)
    unused = {"image_folder": "(none)", "resolution": 64, "skip_unreadable": False, "captions": "a"}
    rates = {"learning_rate": 1e-4, "drop_image": 0.0, "drop_text": 0.0, "drop_both": 0.0}
    made["20"] = node("SoakPictures", count=2, seed=settings.seed)
    made["21"] = node(
        "IPAdapterTrain",
        model=["1", 0],
        clip_vision=["3", 0],
        images=["20", 0],
        vae=["1", 2],
        clip=["1", 1],
        family="standard",
        num_tokens=0,
        steps=100_000,
        batch_size=1,
        accumulation=1,
        seed=1,
        precision="auto",
        **unused,
        **rates,
    )
    return {key: made[key] for key in ("1", "3", "20", "21")} | {"22": saver(["21", 0], 0)}


def saving(settings: Settings) -> Graph:
    """Many files, one after another."""
    made = graph(settings)
    encoder = {"ipadapter": ["2", 0], "clip_vision": ["3", 0], "image": ["4", 0], "weight": 1.0}
    made["20"] = node("IPAdapterEncoder", **encoder)
    for number in range(12):
        embeds = {"embeds": ["20", 0], "filename_prefix": f"{SAVED}_{number}"}
        made[f"{30 + number}"] = node("IPAdapterSaveEmbeds", **embeds)
        made[f"{60 + number}"] = saver(["2", 0], number)
    return made


def saver(adapter: list[Any], number: int) -> dict[str, Any]:
    """IPAdapter Save into the folder of adapters."""
    where = {"folder": "models/ipadapter", "precision": "fp16", "with_training_state": True}
    return node("IPAdapterSave", ipadapter=adapter, filename_prefix=f"{SAVED}_{number}", **where)


LONG_WORK: dict[str, Callable[[Settings], Graph]] = {
    "sampling": sampling,
    "encoding": encoding,
    "training": training,
    "saving": saving,
}


def write_models(models: Path) -> None:
    """A tiny image encoder, and a standard and a Plus adapter for it and the random checkpoint."""
    write_tiny_encoder(models / "clip_vision" / "tiny")
    small = {"hidden": 64, "latent_dim": 64, "inner_dim": 128, "depth": 1}
    kinds = {Family.STANDARD: {"pooled": 48}, Family.PLUS: small}
    for name, (family, encoder) in zip(ADAPTERS, kinds.items(), strict=True):
        nested = synthetic_adapter(family, "SD1.5", device="cpu", **encoder, **FOUR_LAYERS)
        write_adapter(models / "ipadapter" / name, nested)
