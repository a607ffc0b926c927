"""Run an image prompt through the reference (`diffusers`) and through this pack, on
the same UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.unets import Pair

State = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Case:
    """Adapters with their weights, and features per adapter: (images, ...) cond and
    (1, ...) uncond."""

    adapters: Sequence[State]
    weights: Sequence[float]
    cond: Sequence[Tensor]
    uncond: Sequence[Tensor]
    mask: Tensor | None = None


def nested(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An adapter file's tensors as `diffusers` takes them."""
    halves: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        half, _, name = key.partition(".")
        halves[half][name] = value
    return halves


def reference_output(pair: Pair, case: Case) -> Tensor:
    """Noise prediction of `diffusers`: row 0 uncond, row 1 cond."""
    unet = pair.reference
    original = dict(unet.attn_processors)
    hid_proj, hid_type = unet.encoder_hid_proj, unet.config.encoder_hid_dim_type
    try:
        unet._load_ip_adapter_weights(
            [dict(state) for state in case.adapters], low_cpu_mem_usage=False
        )
        for processor in unet.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = list(case.weights)
        embeds = [
            torch.stack([uncond.expand_as(cond), cond])
            for cond, uncond in zip(case.cond, case.uncond, strict=True)
        ]
        added = {**pair.extra.get("added_cond_kwargs", {}), "image_embeds": embeds}
        masks = [] if case.mask is None else [case.mask[:, None]] * len(case.adapters)
        latents, times, text = pair.inputs()
        with torch.no_grad():
            return unet(
                latents,
                times,
                text,
                added_cond_kwargs=added,
                cross_attention_kwargs={"ip_adapter_masks": masks} if masks else None,
            ).sample
    finally:
        unet.encoder_hid_proj = hid_proj
        unet.set_attn_processor(original)
        unet.register_to_config(encoder_hid_dim_type=hid_type)


def model_output(pair: Pair, model: Any) -> Tensor:
    """Noise prediction of a MODEL on the pair's inputs, through the host's own UNet: row 0 uncond,
    row 1 cond."""
    latents, times, text = pair.inputs()
    options = {
        **model.model_options["transformer_options"],
        "cond_or_uncond": [1, 0],
        "sigmas": torch.tensor([1.0]),
    }
    with torch.no_grad():
        return model.model.diffusion_model(
            latents, times, context=text, y=pair.extra.get("y"), transformer_options=options
        )
