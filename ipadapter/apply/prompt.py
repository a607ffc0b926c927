"""From what the encoders gave to one image prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..adapters.adapter import Adapter
from ..adapters.prompt import ImagePrompt, concat
from ..pictures.embeds import CombineMethod, ImageEmbeds, combine_image_embeds
from .request import Request

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
    return ImagePrompt(
        tokens(seen.image, method, seen.keep),
        tokens(seen.negative, negative_method),
        None if seen.second is None else tokens(seen.second, method),
        len(seen.image) if method is CombineMethod.CONCAT and not request.per_item else 1,
    )
