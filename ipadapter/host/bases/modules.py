"""Modules that image prompts need while sampling: models of their own, which the host loads beside
the MODEL, offloads and frees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...attention.injection import Injection, LayerOverTime
from ...bases.layout import Layer
from ..sampling import WRAPPER_KEY


def modules_of(injections: Mapping[Layer, Injection]) -> list[nn.Module]:
    """The modules that make keys and values while sampling, each once."""
    layers = (injection.layer for injection in injections.values())
    return list(dict.fromkeys(one.module for one in layers if isinstance(one, LayerOverTime)))


def managed(modules: Iterable[nn.Module]) -> list[ModelPatcher]:
    """The modules as the host wants its models. Several for one module count as one there."""
    devices = (
        comfy.model_management.get_torch_device(),
        comfy.model_management.unet_offload_device(),
    )
    return [ModelPatcher(module, *devices) for module in modules]


def add_modules(model: ModelPatcher, injections: Mapping[Layer, Injection]) -> None:
    """Make the modules of these injections additional models of a MODEL, which is a clone."""
    before = model.get_additional_models_with_key(WRAPPER_KEY)
    known = {id(one.model) for one in before}
    new = managed(one for one in modules_of(injections) if id(one) not in known)
    if new:
        model.set_additional_models(WRAPPER_KEY, [*before, *new])
