"""From what the encoders gave to one image prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..adapters.adapter import Adapter
from ..adapters.prompt import ImagePrompt, concat
from ..errors import Problem
from ..pictures.embeds import CombineMethod, ImageEmbeds, combine_image_embeds, lengthened
from .request import Request

# Tokens that references and negatives of unlike number may take per layer, each repeated to a
# common multiple: 16 and 15 pictures of a Plus adapter, some GB of keys and values on SDXL.
MOST_TOKENS = 4096

TextProjection = tuple[Tensor, Tensor]  # weight and bias of a base's own, which some tokens pass


@dataclass(frozen=True, eq=False)
class Seen:
    """What the encoders made of a request's pictures.

    image: what to show. negative: what to move away from. second: what composition layers show,
    where that differs.
    """

    image: ImageEmbeds
    negative: ImageEmbeds
    second: ImageEmbeds | None = None


@dataclass(frozen=True, eq=False)
class _Projection:
    """From embeds to tokens, as a request wants it. scales: how much of a face's picture joins its
    identity, one for all latents or one per latent."""

    adapter: Adapter
    scales: tuple[float, ...]
    per_item: bool
    through: TextProjection | None

    @classmethod
    def of(cls, adapter: Adapter, request: Request, through: TextProjection | None) -> _Projection:
        scales = request.face_scales if adapter.spec.family.row.adds_face else (1.0,)
        if through is not None:
            weight, bias = (part * request.weight_kolors for part in through)
            through = weight, bias
        alike = len(set(scales)) == 1
        return cls(adapter, scales[:1] if alike else scales, request.per_item, through)

    def tokens(self, embeds: ImageEmbeds, how: CombineMethod) -> Tensor:
        """(items, tokens, dim): one item for all latents, or one per latent."""
        if self.per_item:
            count = max(len(embeds), len(self.scales))
            scales = lengthened(self.scales, count)
            return self._each(embeds.lengthened(count), scales)
        if len(embeds) > 1:
            embeds = combine_image_embeds([embeds], how)
        return torch.cat([concat(self._each(embeds, [scale])) for scale in self.scales])

    def _each(self, embeds: ImageEmbeds, scales: Sequence[float]) -> Tensor:
        """(images, tokens, dim)"""
        keep = embeds.keep if self.adapter.spec.family.row.keeps_patches else None
        made = self.adapter.tokens(embeds.features, embeds.face, keep, scales)
        return made if self.through is None else functional.linear(made, *self.through)


def image_prompt(
    adapter: Adapter, seen: Seen, request: Request, through: TextProjection | None = None
) -> ImagePrompt:
    """Project what was seen, several pictures combined as the request says."""
    method, projection = request.combine_method, _Projection.of(adapter, request, through)
    # The arithmetic of several pictures is meant for the prompt; several negatives are one mean
    # picture.
    negative_method = method if method is CombineMethod.CONCAT else CombineMethod.AVERAGE
    shown = projection.tokens(seen.image, method)
    same = seen.negative is seen.image
    prompt = ImagePrompt(
        shown,
        shown if same else projection.tokens(seen.negative, negative_method),
        None if seen.second is None else projection.tokens(seen.second, method),
        shows=seen.image.shows,
    )
    if method is not CombineMethod.CONCAT or request.per_item:
        return prompt
    _check_counts(prompt, seen)
    return replace(prompt, images=len(seen.image), second_images=len(seen.second or ()))


def _check_counts(prompt: ImagePrompt, seen: Seen) -> None:
    """Refuse references and negatives whose tokens have to be repeated too often to be
    evaluated together."""
    uncond = prompt.uncond.shape[1]
    for shown, tokens in ((seen.image, prompt.cond), (seen.second, prompt.second)):
        if shown is None or tokens is None:
            continue
        both = math.lcm(tokens.shape[1], uncond)
        if both > max(MOST_TOKENS, tokens.shape[1], uncond):
            raise Problem.EMBEDS_MISMATCH(
                f"{len(shown)} references and {len(seen.negative)} negatives together take {both} "
                "tokens, too many: connect as many negatives as references, or one, or set "
                "combine_embeds to average."
            )
