"""Which base a MODEL is, and how an adapter is put into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...attention.injection import Injection, Recorder
from ...bases.layout import Layer, Layout
from ...errors import Problem
from ..sampling import CARRIER_KEY, add_wrappers
from . import unet
from .carrier import Carrier, read_transformer
from .modules import add_modules

Injections = Mapping[Layer, Injection]


def layout_of(model: ModelPatcher) -> Layout:
    """The layers of a MODEL in which adapters act; ValueError if none is made for such a MODEL."""
    network = model.get_model_object("diffusion_model")
    layout = read_transformer(network)
    if layout is None and not unet.has_slots(network):
        raise Problem.UNSUPPORTED(
            f"This MODEL is {type(model.model).__name__} ({type(network).__name__}), and no "
            "IP-Adapter for it is known to this pack. Load a checkpoint of SD1.5, SD2, SDXL, "
            "Flux.1, Chroma, SD3.5 or Cosmos-Predict2."
        )
    return layout or unet.read_layout(model)


def install(model: ModelPatcher, injections: Injections) -> ModelPatcher:
    """A clone of `model` with one adapter in its blocks. The given MODEL stays as it is."""
    if read_transformer(model.get_model_object("diffusion_model")) is None:
        return unet.install(model, injections)
    clone = model.clone()
    clone.model_options["transformer_options"] = _carrying(_options(clone), injections)
    add_wrappers(clone)
    add_modules(clone, injections)
    return clone


def with_injections(options: Mapping[str, Any], injections: Injections) -> dict[str, Any]:
    """Transformer options of one model call, with an adapter on top of what they hold."""
    if all(layer.part == "" for layer in injections):
        return unet.with_injections(options, injections)
    return _carrying(options, injections)


def record_attention(model: ModelPatcher, recorder: Recorder) -> ModelPatcher:
    """A clone whose image prompts are shown to `recorder`. ValueError if the MODEL has none."""
    clone = model.clone()
    options = _options(clone)
    carrier: Carrier | None = options.get(CARRIER_KEY)
    if carrier is not None:
        recorded = {**options, CARRIER_KEY: carrier.with_recorder(recorder)}
    else:
        recorded = unet.with_recorder(options, recorder)
    if recorded is None:
        raise Problem.WRONG_INPUT(
            "This MODEL carries no image prompt to record: connect the MODEL output of an "
            "IPAdapter node."
        )
    clone.model_options["transformer_options"] = recorded
    return clone


def _options(model: ModelPatcher) -> dict[str, Any]:
    return model.model_options["transformer_options"]


def _carrying(options: Mapping[str, Any], injections: Injections) -> dict[str, Any]:
    carrier: Carrier = options.get(CARRIER_KEY) or Carrier()
    return {**options, CARRIER_KEY: carrier.with_injections(injections)}
