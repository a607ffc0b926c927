"""Captions as a MODEL's own text path gives them to its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...errors import Problem
from ..bases.carrier import kind_of
from ..bases.unet import read_layout

Entry = tuple[Tensor, Mapping[str, Any]]  # (rows, length, width) and its options
_TEXT, _VECTORS = "c_crossattn", "y"  # the host's names


@dataclass(frozen=True, eq=False)
class Text:
    """What a network is given for a prompt. states: (rows, length, width). vectors: (rows, n) or
    None. others: by the network's names, (1, ...), what does not depend on the prompt."""

    states: Tensor
    vectors: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def text_of(model: ModelPatcher, entry: Entry, latents: tuple[int, ...]) -> Text:
    """What a MODEL's network is given for an entry of a CONDITIONING. latents: shape of one
    picture's, (channels, ..., height, width)."""
    if kind_of(model.get_model_object("diffusion_model")) is not None:
        return _of_transformer(model, entry, latents)
    if not model.model.adm_channels:
        return Text(entry[0])
    return Text(entry[0], _adm_vector(model, entry, *(8 * size for size in latents[-2:])))


def is_joint(model: ModelPatcher) -> bool:
    """Whether text and picture are rows of one sequence, so that copies of the text would not be
    the same text."""
    kind = kind_of(model.get_model_object("diffusion_model"))
    return kind is not None and kind.learning.joint


def check_text(model: ModelPatcher, width: int) -> None:
    """ValueError for text states that are not the MODEL's."""
    network = model.get_model_object("diffusion_model")
    kind = kind_of(network)
    if kind is None:
        layout = read_layout(model)
        name, expected = layout.name, layout.context_dim
    else:
        layout = kind.read(network)
        name, expected = "" if layout is None else layout.name, kind.learning.text_dim(network)
    if width != expected:
        raise Problem.WRONG_BASE(
            f"The text states are {width} wide, the MODEL ({name}) takes {expected}: use the CLIP "
            "of the MODEL's own checkpoint."
        )


def _of_transformer(model: ModelPatcher, entry: Entry, latents: tuple[int, ...]) -> Text:
    states, options = entry
    check_text(model, states.shape[-1])
    given = {name: value for name, value in options.items() if value is not None}
    if model.model.model_config.unet_config.get("vec_in_dim", 0):
        _check_pooled(options)
    if (pooled := given.get("pooled_output")) is not None:
        given["pooled_output"] = pooled.expand(len(states), -1)
    given |= {"cross_attn": states, "noise": torch.zeros(1, *latents), "device": states.device}
    conds = model.model.extra_conds(prompt_type="positive", **_with_pooled(given))
    found = {name: getattr(cond, "cond", None) for name, cond in conds.items()}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    text, vectors = tensors.pop(_TEXT), tensors.pop(_VECTORS, None)
    return Text(text, vectors, tensors)


def _with_pooled(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"pooled_output": None, **given}


def _adm_vector(model: ModelPatcher, entry: Entry, height: int, width: int) -> Tensor:
    """What SDXL takes beside the text: (rows, n)."""
    tensor, options = entry
    pooled = _check_pooled(options).expand(len(tensor), -1)
    size = {"height": height, "width": width}
    device = pooled.device
    return model.model.encode_adm(
        pooled_output=pooled, device=device, prompt_type="positive", **size
    )


def _check_pooled(options: Mapping[str, Any]) -> Tensor:
    pooled = options.get("pooled_output")
    if pooled is None:
        raise Problem.WRONG_BASE(
            "The conditioning has no pooled text, which this MODEL needs: encode the captions with "
            "the CLIP of its own checkpoint."
        )
    return pooled
