"""Reading images with a CLIP_VISION: what an adapter's projector is fed."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..errors import Problem
from ..images import CLIP_MEAN, clip_image
from ..recent import Recent, digest
from ..spec import AdapterSpec, EmbedSource, Family, encoder_name

_CHUNK = 16  # images per encoder call when the node does not say
_KEPT = 256 << 20  # bytes of features kept per encoder
_RECENT: weakref.WeakKeyDictionary[Any, Recent] = weakref.WeakKeyDictionary()

_KOLORS = (Family.KOLORS_PLUS, Family.KOLORS_FACEID_PLUS)
_OUTPUT = {EmbedSource.POOLED: "image_embeds", EmbedSource.HIDDEN: "penultimate_hidden_states"}
_OUTPUT[EmbedSource.FACE_AND_HIDDEN] = _OUTPUT[EmbedSource.HIDDEN]


def check_encoder(clip_vision: Any, adapter: str, spec: AdapterSpec) -> None:
    """Raise ValueError if there is no encoder, or one that cannot be the adapter's."""
    if clip_vision is None:
        raise Problem.WRONG_INPUT(
            f"{adapter} needs a CLIP Vision encoder ({spec.encoder_name}) and none is connected: "
            "add Load CLIP Vision with that encoder from models/clip_vision. If it is connected, "
            "the file it loads is not an image encoder."
        )
    if reason := _why_not(clip_vision, spec):
        raise Problem.WRONG_ENCODER(
            f"{adapter} needs {spec.encoder_name}, and the connected encoder {reason}. Download "
            f"{spec.encoder_name} (CLIPVisionModelWithProjection) and load that."
        )


def _why_not(clip_vision: Any, spec: AdapterSpec) -> str:
    """What tells, before anything is encoded, that an encoder is not an adapter's; empty if
    nothing does."""
    # Set by this pack's loaders; the host fills a missing projection with uninitialised numbers.
    headless = not getattr(clip_vision, "has_projection", True)
    if spec.embed_source is EmbedSource.POOLED and headless:
        return "has no visual_projection.weight, so it cannot give image_embeds"
    known = isinstance(clip_vision, ClipVisionModel)
    if known and not hasattr(clip_vision.model, "vision_model"):
        return f"is no CLIP model ({type(clip_vision.model).__name__})"
    # Two encoders of this width exist: only the picture's size tells them apart.
    vit_l = spec.embed_dim == 1024
    if known and vit_l and spec.family in _KOLORS and image_size(clip_vision) != 336:
        return f"takes pictures of {image_size(clip_vision)} px"
    return ""


def encode(clip_vision: Any, images: Tensor, source: EmbedSource, batch_size: int = 0) -> Tensor:
    """Encode images in chunks.

    images: (images, height, width, channels), 0..1. batch_size: images per call, 0 for the default.
    Returns (images, width) pooled embeddings or (images, patches, width) hidden states, fp32.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise Problem.BAD_PICTURE(
            f"The reference image batch has shape {tuple(images.shape)}: expected (images, height, "
            f"width, 3) with at "
            "least one image. Connect an IMAGE output that holds a picture."
        )
    parts = []
    for chunk in images.split(batch_size or _CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        # Cut and sized as the reference does it; the host's own resize rounds the long side
        # differently and leaves an image of the right size alone.
        square = clip_image(chunk, image_size(clip_vision))
        make = partial(_encode_square, clip_vision, square, source)
        parts += _recent(clip_vision).get((source, digest(square)), make)
    return torch.cat(parts)


def _encode_square(clip_vision: Any, square: Tensor, source: EmbedSource) -> list[Tensor]:
    output = clip_vision.encode_image(square, crop=True)
    return [getattr(output, _OUTPUT[source]).float()]


def _recent(clip_vision: Any) -> Recent:
    """Features that an encoder gave lately; they go when the encoder goes."""
    return _RECENT.setdefault(clip_vision, Recent(_KEPT))


def encode_nothing(clip_vision: Any, like: Tensor, source: EmbedSource) -> Tensor:
    """The negative of no negative image: (1, ...) features, as the reference makes them.

    Pooled: zeros. Hidden states: those of an all-zero normalised picture, which is the encoder's
    mean grey and not black (`diffusers`, `zeros_like(pixel_values)`).
    """
    if source is EmbedSource.POOLED:
        return torch.zeros_like(like[:1])
    if isinstance(clip_vision, ClipVisionModel):
        make = partial(_encode_zero_pixels, clip_vision)
        return _recent(clip_vision).get((source, "nothing"), make)[0]
    size = image_size(clip_vision)
    mean = torch.tensor(getattr(clip_vision, "image_mean", CLIP_MEAN))
    return encode(clip_vision, mean.expand(1, size, size, 3), source)


def image_size(clip_vision: Any) -> int:
    """Side of the square picture that an encoder takes."""
    return int(getattr(clip_vision, "image_size", 224))


def _encode_zero_pixels(clip_vision: ClipVisionModel) -> list[Tensor]:
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    size = clip_vision.image_size
    pixels = torch.zeros(1, 3, size, size, device=clip_vision.load_device)
    every = getattr(clip_vision, "return_all_hidden_states", False)
    hidden = clip_vision.model(pixel_values=pixels, intermediate_output="all" if every else -2)[1]
    nothing = hidden[:, -2] if every else hidden
    return [nothing.to(comfy.model_management.intermediate_device()).float()]


def check_width(features: Tensor, adapter: str, spec: AdapterSpec) -> None:
    """Raise ValueError unless features are as wide as the adapter's projector expects."""
    if features.shape[-1] == spec.embed_dim:
        return
    source = EmbedSource.POOLED if spec.embed_source is EmbedSource.POOLED else EmbedSource.HIDDEN
    raise Problem.WRONG_ENCODER(
        f"{adapter} needs {spec.encoder_name}, got {encoder_name(source, features.shape[-1])}. "
        f"Load "
        f""
        f"the encoder it "
        "needs in Load CLIP Vision (folder models/clip_vision)."
    )
