"""Terms made ready before the model runs, so that a block's share is a pure function of tensors.

What changes from call to call (noise level, weights, prompts, masks) is in the tensors alone:
compiled blocks serve all of it, and read nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..errors import Problem
from .decoupled import add_image_attention
from .folding import KeyValue
from .injection import Injection, Queries
from .mask import Factor
from .rows import CallState, Extra

Grid = tuple[int, int]  # height and width of a block's positions
Masks = Mapping[int, Tensor | None]


class Foreseen(NamedTuple):
    """What queries the blocks of a model call will have, and grids that they may lie on."""

    rows: int
    device: torch.device
    dtype: torch.dtype
    grids: Sequence[Grid]

    def fits(self, query: Tensor) -> bool:
        """Whether these queries came. query: (rows, length, width)."""
        return (
            query.shape[0] == self.rows
            and query.dtype == self.dtype
            and query.device == self.device
        )


class Term(NamedTuple):
    """One injection, ready for the rows of one model call.

    key, value: (groups, tokens, width). masks: by number of positions, (1 or rows, positions, 1)
    each; None without a mask. acts, strength: at the call's noise level; gate: the same as a
    tensor, which compiled code reads instead, so that one graph serves every range and strength.
    """

    injection: Injection
    key: Tensor
    value: Tensor
    masks: Masks | None
    acts: bool
    strength: float
    gate: Tensor

    @classmethod
    def ready(cls, injection: Injection, call: CallState, foreseen: Foreseen) -> Term:
        """For the queries that a call will have."""
        width = injection.layer_at(call).cond.key.shape[-1]

        def queries(length: int) -> Queries:
            return Queries((foreseen.rows, length, width), foreseen.device, foreseen.dtype)

        def mask(grid: Grid) -> Tensor | None:
            shape = {"activations_shape": grid}
            return injection.mask_for(call, queries(grid[0] * grid[1]), shape)

        pair = injection.prepared(call, queries(0))
        masks = {height * wide: mask((height, wide)) for height, wide in foreseen.grids}
        return cls._made(injection, pair, None if injection.mask is None else masks, call)

    @classmethod
    def now(cls, injection: Injection, query: Tensor, extra: Extra, call: CallState) -> Term:
        """For queries that are there: (rows, length, width)."""
        pair = injection.prepared(call, query)
        mask = injection.mask_for(call, query, extra)
        masks = None if mask is None else {query.shape[1]: mask}
        return cls._made(injection, pair, masks, call)

    @classmethod
    def _made(
        cls,
        injection: Injection,
        pair: KeyValue,
        masks: Masks | None,
        call: CallState,
    ) -> Term:
        acts, strength = injection.acts(call), injection.strength
        gate = gate_of(injection, strength if acts else 0.0, pair.key, call)
        return cls(injection, pair.key, pair.value, masks, acts, strength, gate)

    @property
    def counts(self) -> bool:
        """Whether the term has to be computed: compiled code always does, the gate closes it."""
        return is_compiling() or self.acts

    def placed(self, query: Tensor) -> bool:
        """Whether the term can be added to a block with these queries."""
        known = self.masks is None or query.shape[1] in self.masks
        return known and self.key.shape[-1] == query.shape[-1]

    def added(self, base: Tensor, query: Tensor, extra: Extra) -> Tensor:
        """`base` with the term; it may be overwritten. base, query: (rows, length, width)."""
        heads = extra.get("n_heads")
        if heads is None:
            raise Problem.OTHER_PACK(
                "The caller of this attention slot gives no n_heads in extra_options, so the image "
                "prompt cannot split its heads. Sample with ComfyUI's own UNet."
            )
        mask = None if self.masks is None else self.masks[query.shape[1]]
        if extra.get("attn_precision") != torch.float32 or query.dtype == torch.float32:
            return self.added_where(mask, base, query, heads)
        wide = self._replace(key=self.key.float(), value=self.value.float())
        return wide.added_where(mask, base.float(), query.float(), heads).to(base.dtype)

    def added_where(self, mask: Tensor | None, base: Tensor, query: Tensor, heads: int) -> Tensor:
        """The same under another mask: (1 or rows, length, 1) or None."""
        if is_compiling():
            value = self.value * self.gate
            return add_image_attention(base, query, self.key, value, heads, Factor(mask))
        factor = Factor(mask, self.strength)
        return add_image_attention(base, query, self.key, self.value, heads, factor)


def gate_of(injection: Injection, factor: float, like: Tensor, call: CallState) -> Tensor:
    """A term's strength at the call's noise level, one number. A tensor of its own for each layer:
    compiled code is told which of its inputs are one and the same."""
    slot = (injection.layer, factor, like.device, like.dtype)
    found = call.prepared.get(slot)
    if found is None:
        found = call.prepared[slot] = torch.full((), factor, device=like.device, dtype=like.dtype)
    return found
