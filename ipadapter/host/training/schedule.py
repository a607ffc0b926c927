"""What a MODEL predicts, at which noise levels, as its sampling says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import comfy.model_sampling
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import Problem
from ...training.flow import FlowSchedule, Spread
from ...training.recipe import NoiseSchedule
from ...training.weighting import Prediction

# Velocity's class is also one of noise, so it comes first.
_KINDS: Mapping[type, Prediction] = {
    comfy.model_sampling.V_PREDICTION: Prediction.V,
    comfy.model_sampling.EPS: Prediction.EPS,
    comfy.model_sampling.CONST: Prediction.FLOW,
    comfy.model_sampling.COSMOS_RFLOW: Prediction.FLOW,
}
_FOREIGN = (comfy.model_sampling.EDM, comfy.model_sampling.X0)


def schedule_of(
    model: ModelPatcher, spread: Spread = Spread.LOGIT_NORMAL
) -> NoiseSchedule | FlowSchedule:
    """Noise levels of a MODEL. spread: how often each is trained on, where it predicts a flow.

    ValueError for models that predict neither noise nor velocity nor a flow.
    """
    sampling = model.get_model_object("model_sampling")
    found = next((p for kind, p in _KINDS.items() if isinstance(sampling, kind)), None)
    sigmas = getattr(sampling, "sigmas", None)
    if found is None or isinstance(sampling, _FOREIGN) or sigmas is None:
        names = ", ".join(base.__name__ for base in type(sampling).__mro__[1:3])
        raise Problem.UNSUPPORTED(
            f"This MODEL's sampling ({names}) cannot be trained on: expected a model that predicts "
            "noise or velocity at 1000 discrete timesteps (SD1.5, SD2, SDXL), or a flow (Flux, "
            "SD3.5, Cosmos)."
        )
    if getattr(model.model, "concat_keys", ()):
        raise Problem.UNSUPPORTED(
            f"This MODEL ({type(model.model).__name__}) is an inpainting or editing model, which "
            "takes a second picture. Train on the plain checkpoint of the same base; the adapter "
            "works on both."
        )
    if found is Prediction.FLOW:
        return FlowSchedule(_shift(sampling), spread)
    return NoiseSchedule(sigmas.detach().float().cpu().clone(), found)


def _shift(sampling: Any) -> float:
    """How far a base's noise levels are moved towards noise, 1 for not at all."""
    if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        return math.exp(sampling.shift)  # its own words for the same curve
    return float(getattr(sampling, "shift", 1.0))


def sigmas_of(sampling: Any, times: Tensor) -> Tensor:
    """The host's noise levels for shares of noise; Cosmos counts noise over signal."""
    if isinstance(sampling, comfy.model_sampling.COSMOS_RFLOW):
        return times / (1 - times)
    return times
