"""Training data of the domain: latents and text features computed once, batches drawn from them."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..models.text import TextFeatures
from ..models.vae import NarrowVAE
from ..world import scenes
from ..world.shapes import SHAPES

TWO_OBJECTS = ("and", "next to", "above", "left of")


@dataclass(frozen=True, eq=False)
class Domain:
    """Samples of one series: `latents` (N, 4, 16, 16) as the UNet sees them (already scaled),
    `features` (M, 77, 768) fp16 of the distinct captions, `caption_index` (N,) into them."""

    seed: int
    latents: torch.Tensor
    captions: list[str]
    features: torch.Tensor
    caption_index: torch.Tensor
    empty: torch.Tensor

    @cached_property
    def single(self) -> torch.Tensor:
        """Samples (K,) whose caption names one object by its shape."""
        said = [caption.partition(" background")[0] for caption in self.captions]
        plain = [not any(f" {words} " in text for words in TWO_OBJECTS) for text in said]
        shaped = [any(f" {shape}" in text for shape in SHAPES) for text in said]
        return (torch.tensor(plain) & torch.tensor(shaped)).nonzero()[:, 0]

    def context(self, indices: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Text features (B, 77, 768) float32; those of the empty caption where not `keep`."""
        chosen = self.features[self.caption_index[indices]].float()
        return torch.where(keep[:, None, None], chosen, self.empty)

    def images(self, indices: torch.Tensor, photos: list) -> torch.Tensor:
        """The images (B, 3, 128, 128) behind the latents, drawn again."""
        drawn = [scenes.sample(self.seed, int(i), photos)[0] for i in indices]
        return torch.stack([torch.from_numpy(image) for image in drawn])


@torch.no_grad()
def caption_features(captions: list[str], text: TextFeatures, size: int = 32) -> torch.Tensor:
    """Features of captions (M, 77, 768) fp16."""
    parts = [text(captions[i : i + size]).half() for i in range(0, len(captions), size)]
    return torch.cat(parts)


@torch.no_grad()
def caption_side(seed: int, count: int, text: TextFeatures, cache: Path | None) -> dict:
    """Captions of the first `count` samples and their features; kept in `cache` when given."""
    if cache is not None and cache.is_file():
        return torch.load(cache, weights_only=True)
    photos = scenes.load_photos()
    captions = [scenes.sample(seed, i, photos)[1] for i in range(count)]
    distinct = sorted(set(captions))
    where = {caption: i for i, caption in enumerate(distinct)}
    side = {
        "captions": captions,
        "features": caption_features(distinct, text),
        "caption_index": torch.tensor([where[caption] for caption in captions]),
        "empty": text([""]),
    }
    if cache is not None:
        torch.save(side, cache)
    return side


@torch.no_grad()
def latent_side(seed: int, count: int, vae: NarrowVAE, cache: Path | None) -> torch.Tensor:
    """Latents of the first `count` samples; kept in `cache` when given."""
    if cache is not None and cache.is_file():
        return torch.load(cache, weights_only=True)
    photos, latents, size = scenes.load_photos(), [], 32
    device = next(vae.parameters()).device
    for start in range(0, count, size):
        images = scenes.batch(seed, start, min(size, count - start), photos).images
        images = images.to(device=device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(vae.encode(images).float().cpu())
    if cache is not None:
        torch.save(torch.cat(latents), cache)
    return torch.cat(latents)


def prepare(
    seed: int, count: int, vae: NarrowVAE, text: TextFeatures, cache: Path | None = None
) -> Domain:
    """Render, encode and describe the first `count` samples of series `seed`.

    `cache` is a folder in which latents and text features are kept; new weights need a new one.
    """
    began, name = time.time(), f"{seed}-{count}.pt"
    side = caption_side(seed, count, text, None if cache is None else cache / f"captions-{name}")
    latents = latent_side(seed, count, vae, None if cache is None else cache / f"latents-{name}")
    print(f"{count} samples in {time.time() - began:.0f}s", flush=True)
    return Domain(seed=seed, latents=latents, **side)
