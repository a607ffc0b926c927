"""What an adapter's projector is fed, for every kind of adapter."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ..adapter import Adapter
from ..embeds import AdapterLabel, ImageEmbeds
from ..errors import Problem
from ..faces import crop_size_for, find_faces
from ..images import blank_outside, clip_image, warn_crop_loss
from ..patches import keep_patches
from ..recent import digest
from ..spec import EmbedSource, Family
from ..tiles import enhance, enhancer_crops
from .payload import Pipeline
from .request import Request
from .vision import check_encoder, check_width, encode, encode_nothing, image_size

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
