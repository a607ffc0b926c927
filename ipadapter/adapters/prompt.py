"""An image prompt: what reference images become once an adapter's projector has read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..attention.folding import LayerRule, Source
from ..errors import Problem


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Image tokens of one prompt.

    cond: (items, tokens, token_dim), what rows of the positive prompt attend to.
    uncond: (1 or items, tokens, token_dim), what all other rows attend to.
    second: like cond, the second image of the style-and-composition types, else None.
    items: 1 for a prompt of the whole batch; n for one prompt per latent of the batch (per frame).
    images, second_images: reference pictures whose tokens lie one after another in `cond` and
    `second`. shows: per item, whether it shows anything (a picture without a face does not); empty
    for all. The last one speaks for all later items.
    """

    cond: Tensor
    uncond: Tensor
    second: Tensor | None = None
    images: int = 1
    second_images: int = 1
    shows: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        """Refuse empty prompts and widths that differ."""
        if 0 in self.cond.shape or 0 in self.uncond.shape:
            raise Problem.WRONG_INPUT(
                "The image prompt is empty: connect at least one reference image."
            )
        if self.cond.shape[-1] != self.uncond.shape[-1]:
            raise Problem.EMBEDS_MISMATCH(
                f"Image tokens are {self.cond.shape[-1]} wide, those of the negative "
                f"{self.uncond.shape[-1]}: both must come from the same adapter."
            )

    def rules(self, rules: Sequence[LayerRule]) -> Sequence[LayerRule]:
        """A layer's rules, one for all items or one per item, with weight 0 where an item
        shows nothing."""
        if all(self.shows):
            return rules
        return [
            rules[min(item, len(rules) - 1)].times(self.shows[min(item, len(self.shows) - 1)])
            for item in range(max(len(rules), len(self.shows)))
        ]

    def pictures(self, source: Source) -> range:
        """Which of all reference pictures a layer sees that is given this source."""
        if source is Source.SECOND_IMAGE and self.second is not None:
            return range(self.images, self.images + self.second_images)
        return range(self.images)


def concat(tokens: Tensor) -> Tensor:
    """Join the tokens of several images into one prompt: (images, tokens, dim) -> (1,
    images * tokens, dim).

    All images share one softmax, as in the reference (`diffusers`, several images for one adapter).
    """
    return tokens.reshape(1, -1, tokens.shape[-1])
