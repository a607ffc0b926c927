"""One adapter in one block, on any base: what it adds, when, where and for which rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import Problem
from .folding import KeyValue, LayerKeyValue, Norms
from .mask import block_grid, mask_rows, warn_unplaced
from .rows import CallState, Extra, Rows
from .sigmas import ALWAYS, WHOLE_RUN, PercentRange, SigmaRange

Recorder = Callable[["Injection", Tensor, Extra, CallState], None]


class Queries(NamedTuple):
    """What the queries of a block will be. shape: (rows, length, width)."""

    shape: tuple[int, int, int]
    device: torch.device
    dtype: torch.dtype


class Place(str, Enum):
    """Where an adapter's term is added to its block."""

    CROSS = "to the attention to the text"
    IN_ATTENTION = "to the attention of text and picture, before its projection and gate"
    AFTER_BLOCK = "to the picture's rows, after the block"
    JOINED = "to the attention, where it shares a softmax with the picture's own keys"


@dataclass(frozen=True, eq=False)
class LayerOverTime:
    """Keys and values of one layer that depend on the noise level.

    made: those of every layer, at the noise level of a call. module: what makes them, which the
    host loads and frees. index: which of them are the layer's.
    weights: of the whole term, one for all latents or one per latent. norms: of the block's own
    queries and keys. items: number of per-latent prompts. images: reference pictures.
    """

    made: Callable[[CallState], Sequence[LayerKeyValue]]
    module: nn.Module
    index: int
    weights: tuple[float, ...]
    norms: Norms
    items: int = 1
    images: range = range(1)

    def to(self, _device: torch.device) -> LayerOverTime:
        """Where its modules are is the host's affair."""
        return self

    def nbytes(self) -> int:
        """Bytes held: what is made for a call goes with the sampling run."""
        return 0

    def weight_of(self, items: Sequence[int]) -> tuple[float, ...]:
        """The weights of some latents."""
        return tuple(self.weights[min(item, len(self.weights) - 1)] for item in items)


@dataclass(frozen=True, eq=False)
class Injection:
    """One adapter in one block.

    layer: keys and values with everything folded in, or such as change over time. place: where they
    act. span: the part of the sampling in which it acts; sigmas: the same in the schedule that the
    MODEL had at Apply, for callers who tell none.
    mask: (masks, H, W) or None; mask i belongs to latent i, the last one to all later latents. With
    one item the prompt serves the whole batch; with n, item i serves latent i, the last one all
    later latents. strength: of the whole term, for strengths that change from step to step.
    """

    layer: LayerKeyValue | LayerOverTime
    span: PercentRange = WHOLE_RUN
    sigmas: SigmaRange = ALWAYS
    mask: Tensor | None = None
    strength: float = 1.0
    place: Place = Place.CROSS

    @property
    def items(self) -> int:
        """Number of per-latent prompts: 1 serves the whole batch."""
        return self.layer.items

    def layer_at(self, call: CallState) -> LayerKeyValue:
        """Keys and values at a call's noise level."""
        layer = self.layer
        return layer if isinstance(layer, LayerKeyValue) else layer.made(call)[layer.index]

    def acts(self, call: CallState) -> bool:
        """True unless the call's noise level lies outside the range."""
        if self.span.always and self.sigmas.always:
            return True
        return call.range_of(self.span, self.sigmas).contains(call.sigma)

    def with_strength(self, strength: float) -> Injection:
        """The same at another strength; device copies of keys and values stay shared."""
        return replace(self, strength=strength)

    def prepared(self, call: CallState, query: Tensor | Queries) -> KeyValue:
        """Keys and values on the query's device and dtype, one group of rows after another.

        (chunks, tokens, width) where a prompt serves whole chunks, else (rows, tokens, width). Made
        once per sampling run for each pattern of cond and uncond chunks; of per-latent prompts only
        the current window is kept.
        """
        rows, layer = call.rows(query.shape[0]), self.layer_at(call)
        given = (layer, (0,) if self.items == 1 else rows.items)
        slot = (self.layer, rows.is_cond, query.device, query.dtype)
        kept = call.prepared.get(slot)
        if kept is None or kept[0] != given:
            kept = (given, _gather(layer, rows.is_cond, given[1], query))
            call.prepared[slot] = kept
        return kept[1]

    def by_chunk(
        self, call: CallState, query: Tensor | Queries
    ) -> Iterator[tuple[slice, KeyValue]]:
        """Like `prepared`, for rows that must not be given a token twice: all rows at once where
        cond and uncond have as many tokens, else one chunk after another."""
        layer, rows = self.layer_at(call), call.rows(query.shape[0])
        if len(set(layer.tokens)) == 1:
            yield slice(None), self.prepared(call, query)
            return
        items = (0,) if self.items == 1 else rows.items
        size = query.shape[0] // len(rows.is_cond)
        for number, is_cond in enumerate(rows.is_cond):
            part = slice(number * size, (number + 1) * size)
            yield part, _gather(layer, (is_cond,), items, query)

    def mask_for(self, call: CallState, query: Tensor | Queries, extra: Extra) -> Tensor | None:
        """(1 or rows, length, 1) mask on the block's own grid, or None. Resized once per sampling
        run, grid and window."""
        if self.mask is None:
            return None
        if not call.placed:
            warn_unplaced(call.prepared)
        height, width = block_grid(query.shape[1], extra)
        rows = call.rows(query.shape[0])
        if self.mask.shape[0] == 1 and not any(rows.crops):
            rows = Rows((True,), (0,), (None,))  # one mask for every row
        layout = (rows.items, rows.crops)
        slot = (id(self.mask), query.device, query.dtype, height, width)
        kept = call.prepared.get(slot)
        if kept is None or kept[0] != layout:
            made = mask_rows(self.mask, height, width, rows.items, rows.crops)
            kept = (layout, made.to(query.device, query.dtype), self.mask)  # keeps the id in use
            call.prepared[slot] = kept
        return kept[1]


def _gather(
    layer: LayerKeyValue, chunks: Sequence[bool], items: Sequence[int], query: Tensor | Queries
) -> KeyValue:
    """Stack the rows' keys and values, then move them in one copy."""
    width = layer.cond.key.shape[-1]
    if width != query.shape[-1]:
        raise Problem.WRONG_BASE(
            f"The image prompt was made for a layer of width {width}, this MODEL's is "
            f"{query.shape[-1]}: make the prompt from the same MODEL that samples."
        )
    pairs = [layer.cond if is_cond else layer.uncond for is_cond in chunks]
    tokens = math.lcm(*(pair.key.shape[1] for pair in pairs))

    def stack(parts: Iterable[Tensor]) -> Tensor:
        picked = [_pick(part, items, tokens) for part in parts]
        return torch.cat(picked).to(query.device, query.dtype)

    return KeyValue(stack(pair.key for pair in pairs), stack(pair.value for pair in pairs))


def _pick(tensor: Tensor, items: Sequence[int], tokens: int) -> Tensor:
    """Rows of the given items, repeated to `tokens`: a softmax over whole copies is
    that over one."""
    rows = tensor[[min(item, tensor.shape[0] - 1) for item in items]]
    return rows if rows.shape[1] == tokens else rows.repeat(1, tokens // rows.shape[1], 1)
