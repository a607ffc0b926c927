"""Latents, image features and text states for a training, from what a graph delivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...adapters.vision import EmbedSource
from ...errors import Problem
from ...pictures.images import Interpolation, as_rgb, crop_square, resize
from ...training.data import Prompts, TrainingSet, same_length
from ...training.folder import PictureFolder, read_folder
from ...training.share import ALONE, Share
from ...training.store import Store, digest_of
from ..encode import encode, encode_nothing, input_of
from .texts import Entry, check_text, is_joint, text_of

NO_FOLDER = "(none)"
_CHUNK = 4  # pictures decoded and encoded at a time

Conditioning = Sequence[Entry]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What to train on: `image(i)` gives (1, height, width, channels); captions, one per picture or
    one for all, or None. content: a digest of a picture, by number."""

    count: int
    image: Callable[[int], Tensor]
    content: Callable[[int], str]
    captions: tuple[str, ...] | None = None

    def chunks(self, prepare: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Prepared pictures, a few at a time; stops where the user interrupts."""
        for start in range(0, self.count, _CHUNK):
            comfy.model_management.throw_exception_if_processing_interrupted()
            numbers = range(start, min(start + _CHUNK, self.count))
            yield torch.cat([prepare(self.image(number)) for number in numbers])


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """The optional sockets of the training node. share: which of several processes this one is."""

    pictures: Pictures
    resolution: int = 512
    latent: Mapping[str, Any] | None = None
    vae: Any = None
    clip: Any = None
    conditioning: Conditioning | None = None
    empty: Conditioning | None = None
    store: Store | None = None
    share: Share = ALONE


def folder_names() -> list[str]:
    """Folders of ComfyUI's input that hold files, for a list."""
    return [NO_FOLDER, *sorted(folder_paths.get_input_subfolders())]


def input_folder(name: str) -> Path:
    """The path of a listed folder. FileNotFoundError for anything else."""
    if name == NO_FOLDER or name not in folder_names():
        raise Problem.FILE_MISSING(
            f"{name} is not a folder in ComfyUI's input. Make it there, press R to refresh the "
            "list, and choose it as image_folder.",
            FileNotFoundError,
        )
    return Path(folder_paths.get_input_directory()) / name


def pictures_of(
    images: Tensor | None,
    folder: str,
    captions: str,
    skip_unreadable: bool,
    store: Store | None = None,
) -> Pictures:
    """Pictures from the socket, else from a folder of the input; captions typed in (one per line)
    come before those of the folder. store: knows pictures that could be read before."""
    lines = tuple(line.strip() for line in captions.strip().splitlines())
    if images is not None:
        rgb = as_rgb(images, "images")
        return Pictures(
            len(rgb),
            lambda number: rgb[number : number + 1],
            lambda number: digest_of(rgb[number]),
            lines or None,
        )
    if folder == NO_FOLDER:
        raise Problem.TRAINING_DATA(
            "There is nothing to train on: connect images, or choose an image_folder of ComfyUI's "
            "input."
        )
    found: PictureFolder = read_folder(input_folder(folder), skip_unreadable, store)
    return Pictures(len(found.paths), found.image, found.content, lines or found.captions)


def training_set(
    model: ModelPatcher, clip_vision: Any, source: EmbedSource, sources: TrainingInputs
) -> TrainingSet:
    """Compute everything that does not change while an adapter trains."""
    latents = _latents(model, sources)
    prompts = _prompts(model, sources, tuple(latents.shape[1:]))
    features, nothing = _features(clip_vision, source, sources.pictures)
    return TrainingSet(plain(latents), plain(features), plain(nothing), prompts)


def plain(tensor: Tensor) -> Tensor:
    """A copy that autograd may use: nodes run in inference mode."""
    with torch.inference_mode(False):
        return tensor.detach().float().cpu().clone()


def _latents(model: ModelPatcher, sources: TrainingInputs) -> Tensor:
    """(pictures, channels, height, width) as the UNet sees them."""
    if sources.latent is not None:
        latents, origin = _with_frame(model, sources.latent["samples"]), "LATENT"
    elif sources.vae is not None:
        vae, origin = sources.vae, "VAE"

        def cut(image: Tensor) -> Tensor:
            return square(image, sources.resolution)

        latents = torch.cat([encoded(vae, chunk) for chunk in sources.pictures.chunks(cut)])
    else:
        raise Problem.WRONG_INPUT("Connect a vae, or the pictures as latent.")
    check_latents(model, tuple(latents.shape), origin)
    return model.model.process_latent_in(latents)


def encoded(vae: Any, pictures: Tensor) -> Tensor:
    """Latents of pictures, (pictures, height, width, 3); a VAE for videos would take several for
    one video."""
    alone = getattr(vae, "latent_dim", 2) == 3
    return torch.cat([vae.encode(some) for some in (pictures.split(1) if alone else (pictures,))])


def _with_frame(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Latents of pictures, as videos of one frame where the base takes videos."""
    wanted = 2 + _latent_dims(model)
    return latents.unsqueeze(2) if latents.ndim == 4 and wanted == 5 else latents


def _latent_dims(model: ModelPatcher) -> int:
    return int(getattr(model.model.latent_format, "latent_dimensions", 2))


def square(image: Tensor, side: int) -> Tensor:
    """What is trained on: the middle square, (1, side, side, 3)."""
    return resize(crop_square(as_rgb(image)), side, side, Interpolation.LANCZOS)


def check_latents(model: ModelPatcher, shape: tuple[int, ...], origin: str) -> None:
    """ValueError for latents that are not the MODEL's."""
    channels, dims = model.model.latent_format.latent_channels, _latent_dims(model)
    frames = shape[2] if len(shape) == 5 else 1
    if len(shape) != 2 + dims or shape[1] != channels or frames != 1:
        one = "1, " if dims == 3 else ""
        raise Problem.WRONG_BASE(
            f"The {origin} is of another base: its latents are {shape}, the MODEL takes "
            f"(pictures, {channels}, {one}height, width). Use the checkpoint's own VAE."
        )


def _features(clip_vision: Any, source: EmbedSource, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Image features, (pictures, ...), and those of a dropped image, (1, ...)."""
    chunks = pictures.chunks(input_of(clip_vision).square)
    features = torch.cat([encode(clip_vision, chunk, source) for chunk in chunks])
    return features, encode_nothing(clip_vision, features, source)


def _prompts(model: ModelPatcher, sources: TrainingInputs, latents: tuple[int, ...]) -> Prompts:
    """Text of the captions or the CONDITIONING, and of the empty prompt. latents: the shape of one
    picture's latents."""
    entries, empty = _conditionings(sources)
    first, options = entries[0]
    nothing = empty[0] if empty else (torch.zeros_like(first[:1]), _without_text(options))
    texts = [text_of(model, entry, latents) for entry in (*entries, (nothing[0][:1], nothing[1]))]
    states = same_length([text.states for text in texts], is_joint(model))
    check_text(model, states[0].shape[-1])
    rows = plain(torch.cat(states[:-1])), plain(states[-1])
    others = {name: plain(value) for name, value in texts[0].others.items()}
    vectors = [text.vectors for text in texts if text.vectors is not None]
    if not vectors:
        return Prompts(*rows, others=others)
    return Prompts(*rows, plain(torch.cat(vectors[:-1])), plain(vectors[-1]), others)


def captions_of(pictures: Pictures) -> tuple[str, ...]:
    """The captions: one per picture, or one for all. ValueError for any other number."""
    captions = pictures.captions or ("",)
    if len(captions) not in (1, pictures.count):
        raise Problem.TRAINING_DATA(
            f"There are {pictures.count} images and {len(captions)} captions: expected "
            "one line per image in the same order, or one line for all."
        )
    return captions


def _conditionings(sources: TrainingInputs) -> tuple[list[Entry], list[Entry]]:
    """Entries of the prompts and of the empty prompt (none if it is to be zeros)."""
    if sources.conditioning is not None:
        if not sources.conditioning:
            raise Problem.WRONG_INPUT(
                "conditioning is empty: connect the output of CLIP Text Encode."
            )
        return entries_of(sources.conditioning), entries_of(sources.empty or ())
    if sources.clip is None:
        raise Problem.WRONG_INPUT("Connect a clip, which reads the captions, or a conditioning.")
    captions = captions_of(sources.pictures)
    encoded = [entry for caption in captions for entry in read_caption(sources.clip, caption)[:1]]
    empty = entries_of(sources.empty) if sources.empty else read_caption(sources.clip, "")
    return encoded, empty


def read_caption(clip: Any, caption: str) -> list[Entry]:
    """What a text encoder makes of a caption."""
    return entries_of(_read(clip, caption))


def _read(clip: Any, caption: str) -> Conditioning:
    comfy.model_management.throw_exception_if_processing_interrupted()
    return clip.encode_from_tokens_scheduled(clip.tokenize(caption))


def entries_of(conditioning: Conditioning) -> list[Entry]:
    return [(tensor, options) for tensor, options in conditioning]


def _without_text(options: Mapping[str, Any]) -> dict[str, Any]:
    pooled = options.get("pooled_output")
    return {**options, "pooled_output": None if pooled is None else torch.zeros_like(pooled)}
