"""Pictures through the image encoder and the face model: what an adapter's projector is fed."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..adapters.cache import TensorCache, digest
from ..adapters.families import Nothing
from ..adapters.spec import AdapterSpec
from ..adapters.vision import VIT_L_336, EmbedSource, encoder_name
from ..apply.prompt import Seen
from ..apply.request import Reading, Request
from ..apply.wire import LoadedAdapter
from ..attention.mask import check_mask
from ..errors import Problem
from ..pictures.embeds import AdapterLabel, ImageEmbeds, as_image_embeds, check_belongs
from ..pictures.faces import any_face, crop_size_for, find_faces
from ..pictures.images import (
    CLIP_MEAN,
    EncoderInput,
    Fit,
    as_rgb,
    blank_outside,
    warn_crop_loss,
)
from ..pictures.reference_mask import check_covers, keep_patches
from ..pictures.tiles import enhance, enhancer_crops
from .encoder_size import original
from .encoders import facts_of, is_siglip
from .pooling_head import PoolingHead

_CHUNK = 16  # images per encoder call when the node does not say
_KEPT = 256 << 20  # bytes of features kept per encoder
_RECENT: weakref.WeakKeyDictionary[Any, TensorCache] = weakref.WeakKeyDictionary()


def see(request: Request) -> Seen:
    """What to show and what to move away from: the embeds that are connected, else pictures,
    else nothing."""
    reading, loaded = request.reading, request.loaded

    def other(picture: Tensor | None, name: str) -> ImageEmbeds | None:
        return None if picture is None else _neutral(loaded, read(reading, picture, name))

    image = _connected(request.pos_embed, "pos_embed", loaded)
    if image is None:
        image = read_reference(reading, require_picture(request.image), request.image_mask)
    negative = _connected(request.neg_embed, "neg_embed", loaded)
    against = request.image_negative
    if negative is None and against is not None and _is_nobody(reading, against):
        negative = _read_nobody(reading, as_rgb(against, "image_negative"))
    if negative is None:
        negative = other(against, "image_negative")
    if negative is None:
        negative = read_nothing(loaded, image)
    return Seen(image, negative, other(request.image_composition, "image_composition"))


def _neutral(loaded: LoadedAdapter, embeds: ImageEmbeds) -> ImageEmbeds:
    """Images without anything to see become the negative of no picture."""
    if not embeds.shows:
        return embeds
    nothing, shows = read_nothing(loaded, embeds).tensors(), torch.tensor(embeds.shows)
    filled = {
        name: torch.where(shows.view(-1, *[1] * (tensor.ndim - 1)), tensor, nothing[name])
        for name, tensor in embeds.tensors().items()
    }
    return replace(embeds, **filled, shows=())


def _is_nobody(reading: Reading, images: Tensor) -> bool:
    """Whether an adapter that reads faces is to move away from pictures without any: noise, say."""
    analysis = reading.loaded.insightface
    if analysis is None or not reading.loaded.adapter.spec.face_dim:
        return False
    return not any_face(analysis, as_rgb(images, "image_negative"))


def _read_nobody(reading: Reading, images: Tensor) -> ImageEmbeds:
    """Pictures of nobody: no identity, and where the adapter reads a picture too, all of it."""
    spec = reading.loaded.adapter.spec
    hidden = _encode_image(reading, images) if spec.embed_source.reads_picture else None
    return _embeds(reading.loaded, hidden, torch.zeros(len(images), spec.face_dim))


def require_picture(image: Tensor | None) -> Tensor:
    """The reference; ValueError where none is connected."""
    if image is None:
        raise Problem.WRONG_INPUT("No reference picture: connect an IMAGE to image.")
    return image


def _connected(value: Any, name: str, loaded: LoadedAdapter) -> ImageEmbeds | None:
    if value is None:
        return None
    embeds = as_image_embeds(value, name)
    check_belongs(embeds, loaded.adapter.spec, loaded.adapter.name, name)
    return embeds


def read(reading: Reading, images: Tensor, name: str = "image") -> ImageEmbeds:
    """Encode pictures with what the adapter needs: an image encoder, a face model, or both."""
    images = as_rgb(images, name)
    if reading.loaded.adapter.spec.face_dim:
        return read_faces(reading, images, name)[0]
    warn_crop_loss(images, input_of(reading.loaded.clip_vision).fit, name)
    return _embeds(reading.loaded, _encode_image(reading, images))


def read_faces(reading: Reading, images: Tensor, name: str = "image") -> tuple[ImageEmbeds, Tensor]:
    """Encode the faces of pictures; also returns the faces as pictures, (faces, size, size, 3).

    Where picture i belongs to latent i, both have an entry for each picture, also without a face.
    """
    loaded, spec = reading.loaded, reading.loaded.adapter.spec
    if loaded.insightface is None:
        raise Problem.WRONG_INPUT(
            f"{loaded.adapter.name} is a {spec.family.value} adapter, which reads faces, and no "
            "face analysis is connected: use IPAdapter Unified Loader FaceID, or connect IPAdapter "
            "InsightFace Loader."
        )
    size = crop_size_for(spec.base_name)
    images = as_rgb(images, name)
    faces = find_faces(loaded.insightface, images, size, reading.missing_face, name)
    shows = faces.shows(len(images)) if reading.per_item else ()
    if shows:
        faces = faces.in_step(len(images))
    hidden = _encode_image(reading, faces.crops) if spec.embed_source.reads_picture else None
    embeds = _embeds(loaded, hidden, faces.embeds(spec.uses_raw_face))
    return replace(embeds, shows=shows), faces.crops


def read_reference(
    reading: Reading, images: Tensor, mask: Tensor | None, name: str = "image_mask"
) -> ImageEmbeds:
    """Encode the pictures inside a mask.

    What lies outside is blanked out before encoding, so nothing of it reaches the adapter. Families
    whose Resampler can do without some patches keep those inside only; the other families read the
    blank part as the encoder's mean grey. `name` is the mask's input, for messages.
    """
    images = as_rgb(images)
    if mask is None:
        return read(reading, images)
    size = (int(images.shape[1]), int(images.shape[2]))
    mask, spec = check_mask(mask, name), reading.loaded.adapter.spec
    form = input_of(reading.loaded.clip_vision)
    whole = form.fit is Fit.SQUASH
    check_covers(mask, size, name, whole=whole or bool(spec.face_dim))
    embeds = read(reading, blank_outside(images, mask, form.mean))
    if embeds.features is None or not spec.family.row.keeps_patches:
        return embeds
    keep = keep_patches(mask, size, embeds.features.shape[1], len(embeds), whole)
    return replace(embeds, keep=keep)


def face_pictures(loaded: LoadedAdapter, images: Tensor) -> Tensor:
    """What an adapter that reads no faces is given of these pictures: the encoder's own crop."""
    return input_of(loaded.clip_vision).square(images)


def _embeds(
    loaded: LoadedAdapter, features: Tensor | None, face: Tensor | None = None
) -> ImageEmbeds:
    spec = loaded.adapter.spec
    label = AdapterLabel.of(spec, loaded.adapter.name, loaded.adapter.digest)
    return ImageEmbeds(features, spec.embed_source, face, spec.uses_raw_face, made_for=label)


def _encode_image(reading: Reading, images: Tensor) -> Tensor:
    adapter, clip_vision = reading.loaded.adapter, reading.loaded.clip_vision
    check_encoder(clip_vision, adapter.name, adapter.spec)
    source, size, tiles = adapter.spec.embed_source, reading.batch_size, reading.enhance_tiles
    features = encode(clip_vision, images, source, size)
    check_width(features, adapter.name, adapter.spec)
    if tiles > 1:
        crops = enhancer_crops(images, tiles, input_of(clip_vision))
        detail = encode(clip_vision, crops, source, size)
        features = enhance(features, detail, tiles, reading.enhance_ratio, reading.per_item)
    return features


def read_nothing(loaded: LoadedAdapter, like: ImageEmbeds) -> ImageEmbeds:
    """The negative of no negative picture, one entry: what the family's reference takes for it. For
    some that is the picture itself, and the very `like` is returned."""
    spec, features = loaded.adapter.spec, like.features
    nothing = spec.family.row.nothing
    if nothing is Nothing.SAME:
        return like
    if features is not None:
        if nothing is not Nothing.ZEROS:
            check_encoder(loaded.clip_vision, loaded.adapter.name, spec)
        features = _NOTHINGS[nothing](loaded.clip_vision, features, like.source)
    face = None if like.face is None else torch.zeros_like(like.face[:1])
    return ImageEmbeds(features, like.source, face, like.raw_face, made_for=like.made_for)


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
    require_head(clip_vision, spec.embed_source, adapter)


def require_head(clip_vision: Any, source: EmbedSource, who: str) -> None:
    """ValueError for SigLIP without its pooling head, whose image_embeds are the host's patches,
    where image_embeds are what `who` reads."""
    if source is not EmbedSource.POOLED or not is_siglip(clip_vision):
        return
    if isinstance(clip_vision.model.visual_projection, PoolingHead):
        return
    own = hasattr(clip_vision, "has_projection")  # set by this pack's loaders
    advice = (
        "The file that it was loaded from lacks vision_model.head: download the whole model."
        if own
        else "ComfyUI's Load CLIP Vision leaves it out: load the same file with IPAdapter Image "
        "Encoder Loader instead."
    )
    raise Problem.WRONG_ENCODER(
        f"{who} needs SigLIP with its pooling head, and the connected encoder has none. {advice}"
    )


def _why_not(clip_vision: Any, spec: AdapterSpec) -> str:
    """What tells, before anything is encoded, that an encoder is not an adapter's;
    empty if nothing does."""
    if is_siglip(clip_vision):
        width = facts_of(clip_vision).hidden
        fits = width == spec.embed_dim
        return "" if fits else f"is {encoder_name(EmbedSource.HIDDEN, width)}"
    # Set by this pack's loaders; the host fills a missing projection with uninitialised numbers.
    headless = not getattr(clip_vision, "has_projection", True)
    if spec.embed_source is EmbedSource.POOLED and headless:
        return "has no visual_projection.weight, so it cannot give image_embeds"
    known = isinstance(clip_vision, ClipVisionModel)
    if known and not hasattr(clip_vision.model, "vision_model"):
        return f"is no CLIP model ({type(clip_vision.model).__name__})"
    wide = spec.embed_dim == VIT_L_336.width(spec.embed_source)
    wanted = spec.family.row.encoder_size if wide else 0
    # Two encoders of this width exist: only the size of picture they are made for tells them apart.
    own = image_size(original(clip_vision))
    if known and wanted and own != wanted:
        return f"takes pictures of {own} px"
    return ""


def encode(clip_vision: Any, images: Tensor, source: EmbedSource, batch_size: int = 0) -> Tensor:
    """Encode images in chunks.

    images: (images, height, width, channels), 0..1. batch_size: images per call, 0 for the default.
    Returns (images, width) pooled embeddings or (images, patches, width) hidden states, fp32.
    """
    parts = []
    for chunk in images.split(batch_size or _CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        # Cut and sized as the reference does it; the host's own resize rounds the long side
        # differently and leaves an image of the right size alone.
        square = input_of(clip_vision).square(chunk)
        make = partial(_encode_square, clip_vision, square, source)
        parts += _recent(clip_vision).get((source, digest(square)), make)
    return torch.cat(parts)


def _encode_square(clip_vision: Any, square: Tensor, source: EmbedSource) -> list[Tensor]:
    output = clip_vision.encode_image(square, crop=True)
    return [getattr(output, source.output.value).float()]


def _recent(clip_vision: Any) -> TensorCache:
    """Features that an encoder gave lately; they go when the encoder goes."""
    return _RECENT.setdefault(clip_vision, TensorCache(_KEPT))


def encode_nothing(clip_vision: Any, like: Tensor, source: EmbedSource) -> Tensor:
    """The negative of no negative image: (1, ...) features, as the reference makes them.

    Pooled: zeros. Hidden states: those of an all-zero normalised picture, which is the encoder's
    mean grey and not black (`diffusers`, `zeros_like(pixel_values)`).
    https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py#L514
    """
    if source is EmbedSource.POOLED:
        return torch.zeros_like(like[:1])
    if isinstance(clip_vision, ClipVisionModel):
        make = partial(_encode_zero_pixels, clip_vision)
        return _recent(clip_vision).get((source, "nothing"), make)[0]
    form = input_of(clip_vision)
    return encode(clip_vision, torch.tensor(form.mean).expand(1, form.size, form.size, 3), source)


def _zeros(_clip_vision: Any, like: Tensor, _source: EmbedSource) -> Tensor:
    return torch.zeros_like(like[:1])


def _black(clip_vision: Any, _like: Tensor, source: EmbedSource) -> Tensor:
    return encode(clip_vision, torch.zeros(1, 8, 8, 3), source)


_NOTHINGS = {Nothing.ZEROS: _zeros, Nothing.GREY: encode_nothing, Nothing.BLACK: _black}


def image_size(clip_vision: Any) -> int:
    """Side of the square picture that an encoder takes."""
    return int(getattr(clip_vision, "image_size", 224))


def input_of(clip_vision: Any) -> EncoderInput:
    """What an encoder takes, as its own preprocessing has it: CLIP the centre square, SigLIP the
    whole picture, its proportions ignored."""
    red, green, blue = getattr(clip_vision, "image_mean", CLIP_MEAN)
    fit = Fit.SQUASH if is_siglip(clip_vision) else Fit.CROP
    return EncoderInput(image_size(clip_vision), fit, (red, green, blue))


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
    got = encoder_name(spec.embed_source, features.shape[-1])
    raise Problem.WRONG_ENCODER(
        f"{adapter} needs {spec.encoder_name}, got {got}. Load the encoder it needs in Load CLIP "
        "Vision (folder models/clip_vision)."
    )
