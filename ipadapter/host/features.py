"""What an adapter's projector is fed, for every kind of adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapter import Adapter
from ..embeds import AdapterLabel, ImageEmbeds
from ..spec import EmbedSource
from ..tiles import enhance, enhancer_crops
from .payload import Pipeline
from .request import Request
from .vision import check_encoder, check_width, encode, encode_nothing, image_size


def read(pipeline: Pipeline, images: Tensor, request: Request) -> ImageEmbeds:
    """Encode reference pictures with what the adapter needs."""
    adapter = pipeline.adapter
    spec = adapter.spec
    if spec.embed_source in (EmbedSource.FACE, EmbedSource.FACE_AND_HIDDEN):
        raise ValueError(
            f"{adapter.name} is a {spec.family.value} adapter, which reads faces: use IPAdapter "
            f"FaceID."
        )
    features = _encode_image(pipeline, images, request)
    return ImageEmbeds(features, spec.embed_source, made_for=AdapterLabel.of(spec, adapter.name))


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


def project(adapter: Adapter, embeds: ImageEmbeds) -> Tensor:
    """Features to image tokens: (images, tokens, token_dim), fp32, on the CPU."""
    given = [t.float().cpu() for t in (embeds.face, embeds.features) if t is not None]
    with torch.no_grad():
        return adapter.projector(*given)
