"""From what the encoders gave to one image prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from ..adapters.adapter import Adapter
from ..adapters.prompt import ImagePrompt, concat
from ..errors import Problem
from ..pictures.embeds import CombineMethod, ImageEmbeds, combine_image_embeds
from .request import Request

# Tokens that references and negatives of unlike number may take per layer, each repeated to a
# common multiple: 16 and 15 pictures of a Plus adapter, some GB of keys and values on SDXL.
MOST_TOKENS = 4096

TextProjection = tuple[Tensor, Tensor]  # weight and bias of a base's own, which some tokens pass


@dataclass(frozen=True, eq=False)
class Seen:
    """What the encoders made of a request's pictures.

    image: what to show; keep: which of its patches, (images, patches) bool, None for all.
    negative: what to move away from. second: what composition layers show, where that differs.
    """

    image: ImageEmbeds
    keep: Tensor | None
    negative: ImageEmbeds
    second: ImageEmbeds | None = None


def image_prompt(
    adapter: Adapter, seen: Seen, request: Request, through: TextProjection | None = None
) -> ImagePrompt:
    """Project what was seen, several pictures combined as the request says."""
    method = request.combine_method

    def tokens(embeds: ImageEmbeds, how: CombineMethod, keep: Tensor | None = None) -> Tensor:
        if len(embeds) > 1 and not request.per_item:
            embeds = combine_image_embeds([embeds], how)
            if keep is not None and len(keep) > len(embeds):
                keep = keep.any(dim=0, keepdim=True)
        made = adapter.tokens(embeds.features, embeds.face, keep, request.face_scale)
        if through is not None:
            made = functional.linear(made, *(part * request.weight_kolors for part in through))
        return made if request.per_item else concat(made)

    # The arithmetic of several pictures is meant for the prompt; several negatives are one mean
    # picture.
    negative_method = method if method is CombineMethod.CONCAT else CombineMethod.AVERAGE
    prompt = ImagePrompt(
        tokens(seen.image, method, seen.keep),
        tokens(seen.negative, negative_method),
        None if seen.second is None else tokens(seen.second, method),
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
