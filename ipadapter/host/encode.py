"""What an adapter's projector is fed, for every kind of adapter."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ..adapters.adapter import Adapter
from ..adapters.cache import Recent, digest
from ..adapters.families import EmbedSource, Family, encoder_name
from ..adapters.spec import AdapterSpec
from ..apply.request import Request
from ..apply.wire import Pipeline
from ..errors import Problem
from ..pictures.embeds import AdapterLabel, ImageEmbeds
from ..pictures.faces import crop_size_for, find_faces
from ..pictures.images import CLIP_MEAN, blank_outside, clip_image, warn_crop_loss
from ..pictures.reference_mask import keep_patches
from ..pictures.tiles import enhance, enhancer_crops

_RESAMPLED = (Family.PLUS, Family.KOLORS_PLUS)
_SHORTCUT = (Family.FACEID_PLUS_V2, Family.KOLORS_FACEID_PLUS)


def read(pipeline: Pipeline, images: Tensor, request: Request, name: str = "image") -> ImageEmbeds:
    """Encode pictures with what the adapter needs: an image encoder, a face model, or both."""
    if pipeline.adapter.spec.face_dim:
        return read_faces(pipeline, images, request, name)[0]
    warn_crop_loss(images, name=name)
    return _embeds(pipeline, _encode_image(pipeline, images, request))


def read_faces(
    pipeline: Pipeline, images: Tensor, request: Request, name: str = "image"
) -> tuple[ImageEmbeds, Tensor]:
    """Encode the faces of pictures; also returns the faces as pictures, (faces, size, size, 3)."""
    spec = pipeline.adapter.spec
    if pipeline.insightface is None:
        raise Problem.WRONG_INPUT(
            f"{pipeline.adapter.name} is a {spec.family.value} adapter, which reads faces, and no "
            f"face analysis is "
            "connected: use IPAdapter Unified Loader FaceID, or connect IPAdapter InsightFace "
            "Loader."
        )
    size = crop_size_for(spec.base_name)
    faces = find_faces(pipeline.insightface, images, size, request.missing_face, name)
    hidden = None
    if spec.embed_source is EmbedSource.FACE_AND_HIDDEN:
        hidden = _encode_image(pipeline, faces.crops, request)
    return _embeds(pipeline, hidden, faces.embeds(spec.uses_raw_face)), faces.crops


def read_reference(
    pipeline: Pipeline, images: Tensor, request: Request
) -> tuple[ImageEmbeds, Tensor | None]:
    """Encode the pictures inside the request's image_mask.

    What lies outside is blanked out before encoding, so nothing of it reaches the adapter. Returns
    the embeds and, for families whose Resampler can do without some patches, which ones to keep:
    (images, patches) bool. The other families read the blank part as the encoder's mean grey.
    """
    mask = request.image_mask
    embeds = read(pipeline, blank_outside(images, mask), request)
    if mask is None or embeds.features is None or pipeline.adapter.spec.family not in _RESAMPLED:
        return embeds, None
    size = (int(images.shape[1]), int(images.shape[2]))
    return embeds, keep_patches(mask, size, embeds.features.shape[1], len(embeds))


def face_pictures(pipeline: Pipeline, images: Tensor) -> Tensor:
    """What an adapter that reads no faces is given of these pictures: the encoder's own crop."""
    return clip_image(images, image_size(pipeline.clip_vision))


def _embeds(pipeline: Pipeline, features: Tensor | None, face: Tensor | None = None) -> ImageEmbeds:
    spec = pipeline.adapter.spec
    label = AdapterLabel.of(spec, pipeline.adapter.name, pipeline.adapter.digest)
    return ImageEmbeds(features, spec.embed_source, face, spec.uses_raw_face, made_for=label)


def _encode_image(pipeline: Pipeline, images: Tensor, request: Request) -> Tensor:
    adapter, clip_vision = pipeline.adapter, pipeline.clip_vision
    check_encoder(clip_vision, adapter.name, adapter.spec)
    source, size = adapter.spec.embed_source, request.encode_batch_size
    features = encode(clip_vision, images, source, size)
    check_width(features, adapter.name, adapter.spec)
    if request.enhance_tiles > 1:
        crops = enhancer_crops(images, request.enhance_tiles, image_size(clip_vision))
        detail = encode(clip_vision, crops, source, size)
        features = enhance(features, detail, request.enhance_tiles, request.enhance_ratio)
    return features


def read_nothing(pipeline: Pipeline, like: ImageEmbeds) -> ImageEmbeds:
    """The negative of no negative picture, one entry: the reference's neutral features."""
    features = like.features
    if features is not None:
        if like.source is not EmbedSource.POOLED:
            check_encoder(pipeline.clip_vision, pipeline.adapter.name, pipeline.adapter.spec)
        features = encode_nothing(pipeline.clip_vision, features, like.source)
    face = None if like.face is None else torch.zeros_like(like.face[:1])
    return ImageEmbeds(features, like.source, face, like.raw_face, made_for=like.made_for)


def project(
    pipeline: Pipeline, embeds: ImageEmbeds, request: Request, keep: Tensor | None = None
) -> Tensor:
    """Features to image tokens: (images, tokens, token_dim), fp32, on the CPU.

    keep: (images, patches) bool, the patches that a Resampler reads; None for all.
    """
    adapter = pipeline.adapter
    # The default scale follows the weight: where it has no effect, a new weight projects nothing.
    scale = request.face_scale if adapter.spec.family in _SHORTCUT else 1.0
    given = [t.float().cpu() for t in (embeds.face, embeds.features) if t is not None]
    given += [] if keep is None else [keep.cpu()]
    with torch.no_grad():
        key = ("tokens", adapter.spec, scale, digest(*given))
        (tokens,) = adapter.recent.get(key, lambda: [_project(adapter, given, scale)])
        return _hid_proj(tokens, request) if adapter.spec.needs_hid_proj else tokens


def _project(adapter: Adapter, given: list[Tensor], face_scale: float) -> Tensor:
    spec, projector = adapter.spec, adapter.projector
    if spec.embed_source is EmbedSource.FACE_AND_HIDDEN:
        return projector(*given, face_scale, spec.family in _SHORTCUT)
    if spec.family is Family.PORTRAIT_UNNORM:
        return projector(given[0].unsqueeze(1))  # one "patch": the face
    return projector(*given)


def _hid_proj(tokens: Tensor, request: Request) -> Tensor:
    """Kolors FaceID: tokens pass through the MODEL's own text projection, scaled by
    weight_kolors."""
    unet = request.model.get_model_object("diffusion_model") if request.model else None
    projection = getattr(unet, "encoder_hid_proj", None)
    if projection is None:
        raise Problem.WRONG_BASE(
            "This FaceID adapter is made for Kolors, whose MODEL has an encoder_hid_proj; the "
            "connected MODEL has "
            "none. Load a Kolors checkpoint with a Kolors loader."
        )
    scale = request.weight_kolors
    weight, bias = (t.float().cpu() * scale for t in (projection.weight, projection.bias))
    return functional.linear(tokens, weight, bias)


def model_patcher(request: Request) -> ModelPatcher:
    """The MODEL of a request."""
    if request.model is None:
        raise Problem.WRONG_INPUT(
            "No MODEL: connect the MODEL output of a checkpoint loader to model."
        )
    return request.model


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
