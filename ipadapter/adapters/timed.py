"""Image prompts of adapters that depend on the noise level: keys and values of all layers are made
when a call asks for them, once per noise level and sampling run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.folding import EmbedsScaling, KeyValue, LayerKeyValue, Norms
from ..attention.injection import LayerOverTime
from ..attention.rows import CallState
from ..errors import Problem
from .prompt import ImagePrompt
from .time_resampler import TimedAdapter

TIMESTEPS = 1000.0  # of noise level 1


@dataclass(frozen=True, eq=False)
class TimedPrompt:
    """What an adapter's modules read. Only keys and values of the present noise level are kept.

    module: of all layers. cond: (items, images, patches, dim), uncond: (1 or items, images,
    patches, dim), features of pictures. dtype: to compute in. images: reference pictures.
    """

    module: TimedAdapter
    cond: Tensor
    uncond: Tensor
    dtype: torch.dtype
    images: int = 1

    def made(self, call: CallState) -> tuple[LayerKeyValue, ...]:
        """Keys and values of every layer at a call's noise level."""
        if call.sigmas is None:
            raise Problem.OTHER_PACK(
                "The caller of this MODEL does not tell the noise level, on which this adapter "
                "depends. Sample with ComfyUI's own samplers."
            )
        kept = call.prepared.get(self)
        if kept is None or kept[0] != call.sigma:
            kept = call.prepared[self] = (call.sigma, self._project(call.sigmas))
        return kept[1]

    def _project(self, sigmas: Tensor) -> tuple[LayerKeyValue, ...]:
        kinds = (self.cond, self.uncond)
        features = torch.cat([kind.flatten(0, 1) for kind in kinds]).to(sigmas.device, self.dtype)
        timestep = sigmas.flatten()[:1] * TIMESTEPS
        with torch.no_grad():
            return tuple(self._layer(*pair) for pair in self.module(features, timestep))

    def _layer(self, key: Tensor, value: Tensor) -> LayerKeyValue:
        """From (all pictures, tokens, width), of cond and then uncond."""
        split = [kind.shape[0] * kind.shape[1] for kind in (self.cond, self.uncond)]

        def of(number: int, kind: Tensor) -> KeyValue:
            parts = (torch.split(part, split)[number] for part in (key, value))
            return KeyValue(*(part.unflatten(0, kind.shape[:2]).flatten(1, 2) for part in parts))

        return LayerKeyValue(of(0, self.cond), of(1, self.uncond), range(self.images))


def over_time(
    module: TimedAdapter,
    prompt: ImagePrompt,
    weights: Sequence[tuple[float, ...]],
    scaling: EmbedsScaling,
    dtype: torch.dtype,
) -> Iterator[LayerOverTime]:
    """What each layer adds. prompt: whose tokens are the features of its pictures, one after
    another. weights: per layer one for all latents, or one per latent."""
    if scaling is not EmbedsScaling.V_ONLY:
        raise Problem.BAD_VALUE(
            f"embeds_scaling is {scaling.value!r}: this adapter shares its attention with the "
            f"picture's own, so a weight can only scale the whole of it. Choose "
            f"{EmbedsScaling.V_ONLY.value!r}."
        )
    patches = prompt.cond.shape[1] // prompt.images
    cond, uncond = (kind.unflatten(1, (-1, patches)) for kind in (prompt.cond, prompt.uncond))
    source = TimedPrompt(module, cond, uncond, dtype, prompt.images)
    for number, layer in enumerate(module.ip_adapter):
        norms = Norms(*(layer.get_parameter(f"{name}.weight") for name in ("norm_q", "norm_k")))
        items = max(len(cond), len(uncond), len(weights[number]))
        images = range(prompt.images)
        yield LayerOverTime(source.made, module, number, weights[number], norms, items, images)
