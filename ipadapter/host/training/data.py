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
from ...bases.layout import Layout
from ...errors import Problem
from ...pictures.images import Interpolation, as_rgb, crop_square, resize
from ...training.data import Prompts, TrainingSet, same_length
from ...training.folder import PictureFolder, read_folder
from ...training.share import ALONE, Share
from ...training.store import Store, digest_of
from ..bases.unet import read_layout
from ..encode import encode, encode_nothing, input_of

NO_FOLDER = "(none)"
_CHUNK = 4  # pictures decoded and encoded at a time

Entry = tuple[Tensor, Mapping[str, Any]]  # (rows, length, width) and its options
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
    prompts = _prompts(model, sources, read_layout(model), tuple(latents.shape[-2:]))
    features, nothing = _features(clip_vision, source, sources.pictures)
    return TrainingSet(plain(latents), plain(features), plain(nothing), prompts)


def plain(tensor: Tensor) -> Tensor:
    """A copy that autograd may use: nodes run in inference mode."""
    with torch.inference_mode(False):
        return tensor.detach().float().cpu().clone()


def _latents(model: ModelPatcher, sources: TrainingInputs) -> Tensor:
    """(pictures, channels, height, width) as the UNet sees them."""
    if sources.latent is not None:
        latents, origin = sources.latent["samples"], "LATENT"
    elif sources.vae is not None:
        vae, origin = sources.vae, "VAE"

        def cut(image: Tensor) -> Tensor:
            return square(image, sources.resolution)

        latents = torch.cat([vae.encode(chunk) for chunk in sources.pictures.chunks(cut)])
    else:
        raise Problem.WRONG_INPUT("Connect a vae, or the pictures as latent.")
    check_latents(model, tuple(latents.shape), origin)
    return model.model.process_latent_in(latents)


def square(image: Tensor, side: int) -> Tensor:
    """What is trained on: the middle square, (1, side, side, 3)."""
    return resize(crop_square(as_rgb(image)), side, side, Interpolation.LANCZOS)


def check_latents(model: ModelPatcher, shape: tuple[int, ...], origin: str) -> None:
    """ValueError for latents that are not the MODEL's."""
    channels = model.model.latent_format.latent_channels
    if len(shape) != 4 or shape[1] != channels:
        raise Problem.WRONG_BASE(
            f"The {origin} is of another base: its latents are {shape}, the MODEL takes "
            f"(pictures, {channels}, height, width). Use the checkpoint's own VAE."
        )


def _features(clip_vision: Any, source: EmbedSource, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Image features, (pictures, ...), and those of a dropped image, (1, ...)."""
    chunks = pictures.chunks(input_of(clip_vision).square)
    features = torch.cat([encode(clip_vision, chunk, source) for chunk in chunks])
    return features, encode_nothing(clip_vision, features, source)


def _prompts(
    model: ModelPatcher, sources: TrainingInputs, layout: Layout, size: tuple[int, ...]
) -> Prompts:
    """Text states of the captions or the CONDITIONING, and of the empty prompt."""
    states, empty = _conditionings(sources)
    first, options = states[0]
    nothing = empty[0] if empty else (torch.zeros_like(first[:1]), _without_text(options))
    entries = [*states, (nothing[0][:1], nothing[1])]
    tensors = same_length([tensor for tensor, _ in entries])
    check_text(layout, tensors[0].shape[-1])
    rows = plain(torch.cat(tensors[:-1])), plain(tensors[-1])
    if not model.model.adm_channels:
        return Prompts(*rows)
    vectors = [adm_vector(model, entry, 8 * size[0], 8 * size[1]) for entry in entries]
    return Prompts(*rows, plain(torch.cat(vectors[:-1])), plain(vectors[-1]))


def check_text(layout: Layout, width: int) -> None:
    """ValueError for text states that are not the MODEL's."""
    if width != layout.context_dim:
        raise Problem.WRONG_BASE(
            f"The text states are {width} wide, the MODEL ({layout.name}) takes "
            f"{layout.context_dim}: use the CLIP of the MODEL's own checkpoint."
        )


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


def adm_vector(model: ModelPatcher, entry: Entry, height: int, width: int) -> Tensor:
    """What SDXL takes beside the text: (rows, n)."""
    tensor, options = entry
    pooled = options.get("pooled_output")
    if pooled is None:
        raise Problem.WRONG_BASE(
            "The conditioning has no pooled text, which this MODEL needs: encode the captions with "
            "the CLIP of its own checkpoint."
        )
    pooled = pooled.expand(len(tensor), -1)
    size = {"height": height, "width": width}
    device = pooled.device
    return model.model.encode_adm(
        pooled_output=pooled, device=device, prompt_type="positive", **size
    )
