"""What an adapter adds in a transformer's block, where text and picture are rows of one sequence.

    after the block    img + w Attn(Q, K', V')                           (XLabs)
    in its attention   Attn(...) + w Attn(Q, K', V'), then projection and gate    (InstantX)
    in its attention   the same with the picture's own keys and values, joined.py (SD3.5)

with the block's own Q after its norm and before its rotary embedding. A patch is plain and
immutable, as in attn2_patch.py; what the host's blocks look like is in host/bases/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .folding import Norms
from .injection import Injection, LayerOverTime, Place, Recorder, add_term
from .joined import Attended, Scales, joined_attention
from .mask import Factor
from .rows import CallState, Extra


@dataclass(frozen=True, eq=False)
class Sight:
    """What a block's rows are, in order: text, the latents' grid, and others (reference pictures).

    heads: of its attention. text: rows of text that come first. grid: height and width. block: part
    of the model and number, for maps. latents: shape of the latents.
    """

    heads: int
    text: int
    grid: tuple[int, int]
    block: tuple[str, int]
    latents: tuple[int, ...]

    @property
    def pixels(self) -> slice:
        """The rows of the grid."""
        return slice(self.text, self.text + self.grid[0] * self.grid[1])

    @property
    def extra(self) -> Extra:
        """The same as a UNet's blocks are told it."""
        return {
            "n_heads": self.heads,
            "activations_shape": (1, 1, *self.grid),
            "original_shape": self.latents,
            "block": self.block,
        }


@dataclass(frozen=True, eq=False)
class BlockPatch:
    """The terms of every adapter in one block. recorder: is shown each as it acts."""

    injections: tuple[Injection, ...] = ()
    recorder: Recorder | None = None

    def with_injection(self, injection: Injection) -> BlockPatch:
        """A new patch that also does `injection`; this one stays as it is."""
        return replace(self, injections=(*self.injections, injection))

    def acting(self, places: Sequence[Place], call: CallState) -> Iterator[Injection]:
        """The terms of some places that act at the call's noise level."""
        return (one for one in self.injections if one.place in places and one.acts(call))

    def added(
        self, place: Place, base: Tensor, query: Tensor, sight: Sight, call: CallState
    ) -> Tensor:
        """`base` with the terms of a place; it may be overwritten.

        base, query: (rows, length, width), the rows as `sight` has them.
        """
        for injection in self.acting((place,), call):
            self._show(injection, query, sight, call)
            mask = spread_mask(injection, query, sight, call)
            base = add_term(injection, base, query, mask, sight.extra, call)
        return base

    def joined(
        self, base: Tensor, given: Attended, block: Norms, sight: Sight, call: CallState
    ) -> Tensor:
        """`base` with the terms that share a softmax with the picture's own keys; it may be
        overwritten. base: (rows, length, width), the picture's rows."""
        for injection in self.acting((Place.JOINED,), call):
            self._show(injection, given.query, sight, call)
            layer = injection.layer
            if not isinstance(layer, LayerOverTime):
                raise TypeError("an adapter that joins softmaxes has norms of its own")
            scales = _scales(layer, block, given.query.device, call)
            factor = _factor(injection, layer, given.query, sight, call)
            for part, pair in injection.by_chunk(call, given.query):
                term = joined_attention(given.rows(part), pair, scales, sight.heads)
                mask = factor.rows(part)
                base[part].add_(term if mask is None else term * mask, alpha=factor.strength)
        return base

    def _show(self, injection: Injection, query: Tensor, sight: Sight, call: CallState) -> None:
        if self.recorder is not None:
            self.recorder(injection, query[:, sight.pixels], sight.extra, call)

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockPatch:
        """Older hosts deep-copy model options on every clone; immutable content needs no copy."""
        return self


def _scales(layer: LayerOverTime, block: Norms, device: torch.device, call: CallState) -> Scales:
    """How an adapter's norms differ from its block's, found out once per sampling run."""
    slot = (layer, Scales, device)
    kept = call.prepared.get(slot)
    if kept is None:
        kept = call.prepared[slot] = Scales.between(layer.norms.to(device), block.to(device))
    return kept


def _factor(
    injection: Injection, layer: LayerOverTime, query: Tensor, sight: Sight, call: CallState
) -> Factor:
    """Mask and weight of the whole term: it has no values of its own that a weight folds into."""
    mask = spread_mask(injection, query, sight, call)
    if len(layer.weights) == 1:
        return Factor(mask, injection.strength * layer.weights[0])
    rows = call.rows(query.shape[0])
    weights = layer.weight_of(rows.items) * len(rows.is_cond)
    by_row = torch.tensor(weights).to(query).view(-1, 1, 1)
    return Factor(by_row if mask is None else by_row * mask, injection.strength)


def spread_mask(
    injection: Injection, query: Tensor, sight: Sight, call: CallState
) -> Tensor | None:
    """(1 or rows, length, 1) mask over all rows of a block, or None.

    The grid has the mask. Text belongs to the whole picture and takes the mask's mean, so that the
    parts of a picture add up to the whole; reference pictures lie outside of it.
    """
    grid = injection.mask_for(call, query[:, sight.pixels], sight.extra)
    if grid is None:
        return None
    slot = (id(grid), sight.text, query.shape[1])
    kept = call.prepared.get(slot)
    if kept is None:
        text = grid.mean(1, keepdim=True).expand(-1, sight.text, -1)
        rest = grid.new_zeros(grid.shape[0], query.shape[1] - sight.pixels.stop, 1)
        kept = call.prepared[slot] = (torch.cat([text, grid, rest], 1), grid)  # keeps the id in use
    return kept[0]


def unroped(query: Tensor, rotation: Tensor) -> Tensor:
    """A query without its rotary embedding: (rows, heads, length, dim).

    rotation: (1 or rows, 1, length, dim / 2, 2, 2), which turns pairs of numbers; its transpose
    turns them back.
    """
    pairs = query.to(rotation.dtype).unflatten(-1, (-1, 1, 2))
    back = rotation[..., 0, :] * pairs[..., 0] + rotation[..., 1, :] * pairs[..., 1]
    return back.flatten(-2).to(query.dtype)
