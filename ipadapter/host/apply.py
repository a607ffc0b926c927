"""Apply: reference images and an adapter in, a patched MODEL out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..adapter import Adapter
from ..mask import check_mask
from ..patch import Injection
from ..plan import Plan, fold_layers
from ..prompt import ImagePrompt, concat
from ..schedule import sigma_range
from .devices import compute_device, kept_device, kept_dtype
from .payload import Pipeline
from .unet import install, read_layout
from .vision import check_encoder, check_width, encode, encode_nothing


@dataclass(frozen=True, eq=False)
class When:
    """Range of the sampling (0..1 each) and area of the picture in which an adapter acts."""

    start_at: float = 0.0
    end_at: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class References:
    """Reference pictures: (images, height, width, channels); negative: pictures to move away
    from."""

    images: Tensor
    negative: Tensor | None = None
    batch_size: int = 0


def image_prompt(pipeline: Pipeline, references: References) -> ImagePrompt:
    """Encode references and project them: all images in one prompt, sharing one softmax
    (concat)."""
    adapter, clip_vision = pipeline.adapter, pipeline.clip_vision
    check_encoder(clip_vision, adapter.name, adapter.spec)
    source = adapter.spec.embed_source
    cond = encode(clip_vision, references.images, source, references.batch_size)
    check_width(cond, adapter.name, adapter.spec)
    if references.negative is None:
        uncond = encode_nothing(clip_vision, cond, source)
    else:
        uncond = encode(clip_vision, references.negative, source, references.batch_size)
    return ImagePrompt(concat(project(adapter, cond)), concat(project(adapter, uncond)))


def project(adapter: Adapter, features: Tensor) -> Tensor:
    """Features to image tokens: (images, tokens, token_dim), fp32, on the CPU."""
    with torch.no_grad():
        return adapter.projector(features.float().cpu())


def apply_prompt(
    model: ModelPatcher, adapter: Adapter, prompt: ImagePrompt, plan: Plan, when: When
) -> ModelPatcher:
    """Patch a clone of `model` with a prompt. Raises ValueError if adapter and MODEL do not belong
    together."""
    layout = read_layout(model)
    sampling = model.get_model_object("model_sampling")
    sigmas = sigma_range(when.start_at, when.end_at, sampling.percent_to_sigma)
    mask = None if when.mask is None else check_mask(when.mask)
    with torch.no_grad():
        folded = fold_layers(adapter, layout, prompt, plan, compute_device(), kept_dtype(model))
        injections = {layer: Injection(kv.to(kept_device()), sigmas, mask) for layer, kv in folded}
    return install(model, injections)
