"""Pictures and captions encoded once and kept on disk, a few in memory at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...adapters.vision import EmbedSource
from ...errors import Problem
from ...training.data import Prompts, common_length, repeated
from ...training.store import Row, Store, StoredSet, digest_of, fingerprint
from ..encode import encode, encode_nothing, input_of
from .data import (
    TrainingInputs,
    captions_of,
    check_latents,
    encoded,
    plain,
    read_caption,
    square,
)
from .texts import Entry, check_text, is_joint, text_of

logger = logging.getLogger("ipadapter")

_AT_A_TIME = 4


def store() -> Store:
    """Where entries are kept: in ComfyUI's output, so that they can be seen and deleted."""
    return Store(Path(folder_paths.get_output_directory()) / "ipadapter_encoded")


def can_be_stored(sources: TrainingInputs) -> bool:
    """Whether everything is made here, from pictures and words; what a graph has encoded already is
    in memory anyway."""
    encodes = sources.latent is None and sources.conditioning is None
    known = all(_weights(model) for model in (sources.vae, sources.clip))
    if not (encodes and known):
        logger.info("keep_encoded is not used: latents or text come encoded already.")
    return encodes and known


def stored_set(
    model: ModelPatcher,
    clip_vision: Any,
    source: EmbedSource,
    sources: TrainingInputs,
    kept: Store,
) -> StoredSet:
    """Compute what is not there yet, and say where everything is."""
    pictures = [sources.pictures.content(number) for number in range(sources.pictures.count)]
    latents = _latents(model, sources, pictures, kept)
    features, nothing = _features(clip_vision, source, sources, pictures, kept)
    texts, empty = _texts(model, sources, kept.shape(latents[0], "latents")[1:], kept)
    rows = tuple(Row(*keys) for keys in zip(latents, features, texts, strict=True))
    return StoredSet(kept, rows, nothing, empty, model.model.process_latent_in)


def _latents(
    model: ModelPatcher, sources: TrainingInputs, pictures: list[str], kept: Store
) -> list[str]:
    vae, side = sources.vae, sources.resolution
    by = fingerprint(_weights(vae))
    keys = [digest_of("latents", by, side, picture) for picture in pictures]

    def make(numbers: list[int]) -> list[dict[str, Tensor]]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        images = torch.cat([square(sources.pictures.image(number), side) for number in numbers])
        found = plain(encoded(vae, images))
        check_latents(model, tuple(found.shape), "VAE")
        return [{"latents": _finite(one, "latents")} for one in found.split(1)]

    kept.fill(keys, make, _AT_A_TIME, sources.share)
    check_latents(model, kept.shape(keys[0], "latents"), "VAE")
    return keys


def _features(
    clip_vision: Any,
    source: EmbedSource,
    sources: TrainingInputs,
    pictures: list[str],
    kept: Store,
) -> tuple[list[str], Tensor]:
    """Keys, and the features of a dropped image."""
    shown = input_of(clip_vision)
    by = fingerprint(_weights(clip_vision))
    keys = [digest_of("features", by, source.value, shown, picture) for picture in pictures]

    def make(numbers: list[int]) -> list[dict[str, Tensor]]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        images = [shown.square(sources.pictures.image(number)) for number in numbers]
        found = plain(encode(clip_vision, torch.cat(images), source))
        return [{"features": _finite(one, "image features")} for one in found.split(1)]

    kept.fill(keys, make, _AT_A_TIME, sources.share)
    first = kept.get(keys[0])["features"]
    return keys, plain(encode_nothing(clip_vision, first, source))


def _texts(
    model: ModelPatcher, sources: TrainingInputs, latents: tuple[int, ...], kept: Store
) -> tuple[list[str], Prompts]:
    """Keys, one per picture, and the empty prompt. latents: shape of one picture's."""
    captions = captions_of(sources.pictures)
    by = fingerprint(_weights(sources.clip))
    base = type(model.model).__name__, model.model.adm_channels, latents[-2:]
    settings = (
        getattr(sources.clip, "layer_idx", None),
        getattr(sources.clip, "tokenizer_options", 0),
    )
    # The empty prompt is an entry like the others.
    keys = [digest_of("text", by, base, settings, caption) for caption in (*captions, "")]

    def entry(number: int) -> dict[str, Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        caption = (*captions, "")[number]
        return _entry(model, read_caption(sources.clip, caption)[0], latents)

    kept.fill(
        keys, lambda numbers: [entry(number) for number in numbers], _AT_A_TIME, sources.share
    )
    lengths = {kept.shape(key, "states")[1] for key in keys}
    nothing = kept.get(keys[-1])
    check_text(model, nothing["states"].shape[-1])
    if sources.empty:
        nothing = _entry(model, next(iter(sources.empty)), latents)
        lengths.add(nothing["states"].shape[1])
    empty = repeated(nothing.pop("states"), common_length(lengths, is_joint(model)))
    vectors = nothing.pop("vectors", None)
    keys = keys[:-1] * (sources.pictures.count // len(captions))
    return keys, Prompts(empty, empty, vectors, vectors, nothing)


def _entry(model: ModelPatcher, entry: Entry, latents: tuple[int, ...]) -> dict[str, Tensor]:
    """States, (1, length, width), vectors, (1, n), and what else the base takes, by name."""
    text = text_of(model, (entry[0][:1], entry[1]), latents)
    found = {"states": text.states, "vectors": text.vectors, **text.others}
    return {name: plain(value) for name, value in found.items() if value is not None}


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise Problem.TRAINING_DATA(
            f"The {name} have NaN or infinite values; the model that made them failed. Try it in "
            "fp32."
        )
    return tensor


def _weights(model: Any) -> dict[str, Tensor]:
    """Weights of an encoder, LoRAs included; nothing for an object of another kind."""
    names = ("cond_stage_model", "first_stage_model", "model")
    inner: Any = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if not isinstance(inner, torch.nn.Module):
        return {}
    patches = getattr(getattr(model, "patcher", None), "patches", {})
    found = {**inner.state_dict(), **{f"{key} patch": _flat(patches[key]) for key in patches}}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _flat(patch: Any) -> Tensor:
    """The numbers of a patch, one behind another."""
    if isinstance(patch, Tensor):
        return patch.detach().float().cpu().flatten()
    if isinstance(patch, (int, float)):
        return torch.tensor([float(patch)])
    inner = patch if isinstance(patch, (list, tuple)) else getattr(patch, "weights", ())
    parts = [_flat(part) for part in inner or ()]
    return torch.cat(parts) if parts else torch.zeros(0)
