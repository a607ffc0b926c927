"""Apply: reference pictures and an adapter in, a patched MODEL out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.prompt import ImagePrompt, concat
from ..apply.request import Request, chosen
from ..apply.weighting import Plan, check_fits, fold_layers
from ..apply.wire import Pipeline
from ..attention.injection import Injection
from ..attention.mask import check_mask
from ..attention.sigmas import sigma_range
from ..bases.layout import Layer
from ..errors import Problem
from ..pictures.embeds import (
    CombineMethod,
    ImageEmbeds,
    as_image_embeds,
    check_belongs,
    combine_image_embeds,
)
from .bases.unet import install, read_layout
from .devices import compute_device, kept_device, kept_dtype
from .encode import model_patcher, project, read, read_nothing, read_reference


@dataclass(frozen=True, eq=False)
class When:
    """Range of the sampling (0..1 each) and area of the picture in which an adapter acts."""

    start_at: float = 0.0
    end_at: float = 1.0
    mask: Tensor | None = None


def run(request: Request) -> ModelPatcher:
    """What an Apply node does. Raises ValueError where adapter, MODEL, encoder and inputs do not
    fit."""
    return install(model_patcher(request), injections_of(request))


def injections_of(request: Request) -> dict[Layer, Injection]:
    """What a request's pictures add to each layer of its MODEL."""
    pipeline, layout = request.pipeline, read_layout(model_patcher(request))
    check_fits(pipeline.adapter, layout)
    plan = request.plan(layout)
    when = When(request.start_at, request.end_at, request.attn_mask)
    prompt = build_prompt(request, pipeline)
    return injections_for(model_patcher(request), pipeline.adapter, prompt, plan, when)


def build_prompt(request: Request, pipeline: Pipeline) -> ImagePrompt:
    """Read the request's pictures and project them into one prompt."""
    method = chosen(CombineMethod, request.combine_embeds, "combine_embeds")
    image, keep, negative = _embeds(request, pipeline)
    second = None
    if request.image_composition is not None:
        second = read(pipeline, request.image_composition, request)

    def tokens(embeds: ImageEmbeds, how: CombineMethod, keep: Tensor | None = None) -> Tensor:
        if request.per_item:
            return project(pipeline, embeds, request, keep)
        if len(embeds) > 1:
            embeds = combine_image_embeds([embeds], how)
        if keep is not None and len(keep) > len(embeds):
            keep = keep.any(dim=0, keepdim=True)
        return concat(project(pipeline, embeds, request, keep))

    # The arithmetic of several pictures is meant for the prompt; several negatives are one mean
    # picture.
    calm = method if method is CombineMethod.CONCAT else CombineMethod.AVERAGE
    return ImagePrompt(
        tokens(image, method, keep),
        tokens(negative, calm),
        None if second is None else tokens(second, method),
        len(image) if method is CombineMethod.CONCAT and not request.per_item else 1,
    )


def _embeds(request: Request, pipeline: Pipeline) -> tuple[ImageEmbeds, Tensor | None, ImageEmbeds]:
    """What to show, which of its patches, and what to move away from: the embeds that are
    connected, else pictures, else nothing."""
    image, keep = _checked(request.pos_embed, "pos_embed", pipeline), None
    if image is None:
        if request.image is None:
            raise Problem.WRONG_INPUT("No reference picture: connect an IMAGE to image.")
        image, keep = read_reference(pipeline, request.image, request)
    negative = _checked(request.neg_embed, "neg_embed", pipeline)
    if negative is None and request.image_negative is not None:
        negative = read(pipeline, request.image_negative, request)
    return image, keep, negative or read_nothing(pipeline, image)


def _checked(value: Any, name: str, pipeline: Pipeline) -> ImageEmbeds | None:
    if value is None:
        return None
    embeds = as_image_embeds(value, name)
    check_belongs(embeds, pipeline.adapter.spec, pipeline.adapter.name, name)
    return embeds


def apply_prompt(
    model: ModelPatcher, adapter: Adapter, prompt: ImagePrompt, plan: Plan, when: When
) -> ModelPatcher:
    """Patch a clone of `model` with a prompt. ValueError if adapter and MODEL do not belong
    together."""
    return install(model, injections_for(model, adapter, prompt, plan, when))


def injections_for(
    model: ModelPatcher, adapter: Adapter, prompt: ImagePrompt, plan: Plan, when: When
) -> dict[Layer, Injection]:
    """What a prompt adds to each layer of a MODEL that it acts on."""
    layout = read_layout(model)
    sampling = model.get_model_object("model_sampling")
    sigmas = sigma_range(when.start_at, when.end_at, sampling.percent_to_sigma)
    mask = None if when.mask is None else check_mask(when.mask)
    with torch.no_grad():
        folded = fold_layers(adapter, layout, prompt, plan, compute_device(), kept_dtype(model))
        return {
            layer: Injection(kv.to(kept_device()), sigmas, mask, images=prompt.images)
            for layer, kv in folded
        }
