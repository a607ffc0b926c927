"""Apply, in one straight line: layout, encode, prompt, fold, install."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.prompt import ImagePrompt
from ..apply.prompt import TextProjection, image_prompt
from ..apply.request import Request
from ..attention.injection import Injection
from ..attention.mask import acting_mask
from ..attention.sigmas import PercentRange
from ..attention.weight_types import Weighting
from ..bases.flux import FLUX
from ..bases.layout import Layer, Layout
from ..errors import Problem
from .bases.install import install, layout_of
from .devices import compute_device, kept_device, kept_dtype
from .encode import see

logger = logging.getLogger("ipadapter")


@dataclass(frozen=True, eq=False)
class ApplyRange:
    """Range of the sampling (0..1 each) and area of the picture in which an adapter acts."""

    start_at: float = 0.0
    end_at: float = 1.0
    mask: Tensor | None = None


def run(request: Request) -> ModelPatcher:
    """What an Apply node does.

    Raises ValueError where adapter, MODEL, encoder and inputs do not fit.
    """
    return install(_model(request), injections_of(request))


def injections_of(request: Request) -> dict[Layer, Injection]:
    """What a request's pictures add to each layer of its MODEL."""
    model, adapter = _model(request), request.loaded.adapter
    layout = layout_of(model)
    layout = adapter.layers_in(layout)
    weighting = request.weighting(layout)
    _warn_unguided(request, layout)
    through = _text_projection(model) if adapter.spec.needs_hid_proj else None
    prompt = image_prompt(adapter, see(request), request, through)
    when = ApplyRange(request.start_at, request.end_at, request.attn_mask)
    return fold_into(model, layout, adapter, prompt, weighting, when)


def fold_into(
    model: ModelPatcher,
    layout: Layout,
    adapter: Adapter,
    prompt: ImagePrompt,
    weighting: Weighting,
    when: ApplyRange,
) -> dict[Layer, Injection]:
    """What a prompt adds to each layer of a MODEL that it acts on."""
    span = PercentRange(when.start_at, when.end_at)
    sigmas = span.resolved(model.get_model_object("model_sampling").percent_to_sigma)
    mask = None if when.mask is None else acting_mask(when.mask)
    place = adapter.spec.family.row.wiring.value.place
    with torch.no_grad():
        folded = adapter.fold(layout, prompt, weighting, compute_device(), kept_dtype(model))
        return {
            layer: Injection(kv.to(kept_device()), span, sigmas, mask, place=place)
            for layer, kv in folded
        }


def _warn_unguided(request: Request, layout: Layout) -> None:
    """Say where a negative is easily given in vain."""
    negative = request.image_negative is not None or request.neg_embed is not None
    if negative and layout.name == FLUX:
        logger.info(
            "The image negative acts only where the sampler's cfg is above 1. Flux.1 is usually "
            "sampled at cfg 1, where no negative does anything."
        )


def _model(request: Request) -> ModelPatcher:
    if request.model is None:
        raise Problem.WRONG_INPUT(
            "No MODEL: connect the MODEL output of a checkpoint loader to model."
        )
    return request.model


def _text_projection(model: ModelPatcher) -> TextProjection:
    """Kolors FaceID: tokens pass through the MODEL's own text projection."""
    projection = getattr(model.get_model_object("diffusion_model"), "encoder_hid_proj", None)
    if projection is None:
        raise Problem.WRONG_BASE(
            "This FaceID adapter is made for Kolors, whose MODEL has an encoder_hid_proj; the "
            "connected MODEL has none. Load a Kolors checkpoint with a Kolors loader."
        )
    return projection.weight.float().cpu(), projection.bias.float().cpu()
