"""What all transformers of the host have in common: how a block's attention is seen and added to.

A block's slot and the attention's override can hold one function each: ours call what they find
there. What is shared is never changed: options are copied, blocks and their forward stay as they
are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ...adapters.wiring import Wiring
from ...attention.folding import Norms
from ...attention.transformer_patch import ReadyBlock, Sight
from ...bases.layout import Layer, Layout

logger = logging.getLogger("ipadapter")

OVERRIDE = "optimized_attention_override"
_WARNED = "warned that a block's attention was not seen"

Args = Mapping[str, Any]
Options = Mapping[str, Any]  # transformer options
Block = Callable[[Args], dict[str, Any]]
Attended = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # query, key, value, output -> output


@dataclass(eq=False)
class Frame:
    """What the blocks of one model call have in common. grid: of the latents' patches; latents:
    their shape. fresh: whether the host's attention gives a tensor that nobody else holds. text:
    rows of text, as far as a block has told it. acted: whether a block ran with its terms; unseen:
    the first that hid its attention. twice: a warm start looks at what the text adds, so the empty
    text is there as well: in joint blocks as a second half of the rows, elsewhere behind the text.
    """

    grid: tuple[int, int]
    latents: tuple[int, ...]
    fresh: bool
    text: int = 0
    acted: bool = False
    unseen: Layer | None = None
    twice: bool = False


class Around(NamedTuple):
    """A block, its terms, and the model call that it is part of."""

    layer: Layer
    ready: ReadyBlock
    frame: Frame

    def sight(self, text: int) -> Sight:
        """What the block's rows are. text: rows of text that come first."""
        where = (self.layer.part, self.layer.block.number)
        latents = self.frame.latents
        frames = latents[2] if len(latents) == 5 else 1
        return Sight(self.layer.heads, text, self.frame.grid, where, latents, frames)


@dataclass(frozen=True)
class Learning:
    """What training an adapter for a kind of transformer asks of it.

    wiring: of a new adapter. token_dim, text_dim: given the network, the widths of a new adapter's
    tokens and of the text states. begin: what a layer of a new adapter holds at first. joint:
    whether text and picture are rows of one sequence, else the text is what layers attend to.
    """

    wiring: Wiring
    token_dim: Callable[[Any], int]
    text_dim: Callable[[Any], int]
    begin: Callable[[Any, Layer], Mapping[str, Tensor]]
    joint: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of transformer.

    read: its layout, None for a network of another kind. slots: the host's name for the slots of
    the blocks that a layout calls so. carry: runs a block, given its arguments, with its terms.
    patch_size: side of the square of latents that is a token. told_by: for blocks that are not told
    how many rows are text, the slot of one that is. norms: a block's own, as the network that
    samples has them. learning: how adapters are trained for it. around: for blocks that have no
    slots, the options of a model call with the terms in its blocks.
    """

    read: Callable[[Any], Layout | None]
    slots: Mapping[str, str]
    carry: Callable[[Around, Block, Args], dict[str, Any]]
    patch_size: Callable[[Any], int]
    learning: Learning
    told_by: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    norms: Callable[[Any, Layer], Norms | None] = lambda _network, _layer: None
    around: Callable[[Options, Sequence[Around]], dict[str, Any]] | None = None


def with_override(options: Mapping[str, Any], attended: Attended) -> dict[str, Any]:
    """Copy of transformer options whose attention shows what it did to `attended`, and gives what
    that makes of it."""
    before = options.get(OVERRIDE)

    def override(
        attention: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if before is None:
            output = attention(query, key, value, *args, **kwargs)
        else:
            output = before(attention, query, key, value, *args, **kwargs)
        return attended(query, key, value, output)

    return {**options, OVERRIDE: override}


def with_patches(options: Mapping[str, Any], **patches: Callable[..., Any]) -> dict[str, Any]:
    """Copy of transformer options with a further patch of each of these kinds."""
    before: Mapping[str, Any] = options.get("patches", {})
    added = {name: [*before.get(name, ()), patch] for name, patch in patches.items()}
    return {**options, "patches": {**before, **added}}


def warn_unseen(layer: Layer, prepared: MutableMapping[Any, Any]) -> None:
    """Say once per sampling run that a block's attention went past the host."""
    if _WARNED not in prepared:
        prepared[_WARNED] = True
        logger.warning(
            "The image prompt does not act in block %s %d, and perhaps in others: another pack "
            "computes the attention there without the host's optimized_attention. Remove that "
            "pack's node.",
            layer.block.name,
            layer.block.number,
        )
