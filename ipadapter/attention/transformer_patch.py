"""What an adapter adds in a transformer's block, where text and picture are rows of one sequence.

    after the block    img + w Attn(Q, K', V')                           (XLabs)
    in its attention   Attn(...) + w Attn(Q, K', V'), then projection and gate    (InstantX)
    in its attention   the same with the picture's own keys and values, joined.py (SD3.5)

with the block's own Q after its norm and before its rotary embedding. A patch is plain and
immutable, as in attn2_patch.py; what the host's blocks look like is in host/bases/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .folding import Norms
from .injection import Injection, LayerOverTime, Place, Queries, Recorder
from .joined import Attended, JoinedTerm, Scales
from .rows import CallState, Extra
from .terms import Foreseen, Grid, Term, gate_of

_MOST = 0.9  # of the picture, from where on picking positions saves nothing


class Sight(NamedTuple):
    """What a block's rows are, in order: text, the latents' grid, and others (reference pictures).

    heads: of its attention. text: rows of text that come first. grid: height and width. block: part
    of the model and number, for maps. latents: shape of the latents. frames: how many grids there
    are, one after another.
    """

    heads: int
    text: int
    grid: tuple[int, int]
    block: tuple[str, int]
    latents: tuple[int, ...]
    frames: int = 1

    @property
    def pixels(self) -> slice:
        """The rows of the first grid."""
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

    def ready(self, call: CallState, foreseen: Foreseen, norms: Norms | None = None) -> ReadyBlock:
        """The patch for one call of the model. foreseen: with one grid, that of the latents.
        norms: the block's own, for terms that share a softmax with the picture's own keys."""

        def terms(place: Place) -> tuple[Term, ...]:
            found = (one for one in self.injections if one.place is place)
            return tuple(Term.ready(one, call, foreseen) for one in found)

        joined = [one for one in self.injections if one.place is Place.JOINED and one.acts(call)]
        return ReadyBlock(
            self,
            call,
            foreseen,
            norms,
            terms(Place.IN_ATTENTION),
            terms(Place.AFTER_BLOCK),
            tuple(_joined(one, norms, call, foreseen) for one in joined),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockPatch:
        """Older hosts deep-copy model options on every clone; immutable content needs no copy."""
        return self


class ReadyBlock(NamedTuple):
    """A block's patch in one call of the model, where its terms are ready.

    inside: in its attention; after: after the block; joined: in its attention, with a softmax that
    they share with the picture's own keys.
    """

    patch: BlockPatch
    call: CallState
    foreseen: Foreseen
    norms: Norms | None
    inside: tuple[Term, ...]
    after: tuple[Term, ...]
    joined: tuple[JoinedTerm, ...]

    def counts(self) -> bool:
        """Whether any term has to be computed."""
        return counted(self.inside) or counted(self.after) or counted(self.joined)

    def added_inside(self, base: Tensor, query: Tensor, sight: Sight) -> Tensor:
        """`base`, which may be overwritten, with the terms in the attention. base, query: (rows,
        length, width), the rows as `sight` has them."""
        return self._added(self._for(query).inside, base, query, sight)

    def added_after(self, base: Tensor, query: Tensor, sight: Sight) -> Tensor:
        """The same with the terms after the block."""
        return self._added(self._for(query).after, base, query, sight)

    def add_joined_(self, base: Tensor, given: Attended, sight: Sight) -> None:
        """Add the terms that share a softmax with the picture's own keys, in place. base: (rows,
        length, width), the picture's rows."""
        for term in self._for(given.query).joined:
            self._show(term.injection, given.query, sight)
            term.add_(base, given, sight.heads)

    def _added(self, terms: Sequence[Term], base: Tensor, query: Tensor, sight: Sight) -> Tensor:
        for term in terms:
            if term.counts:
                self._show(term.injection, query, sight)
                mask = spread_mask(term, query, sight, self.call)
                base = term.added_where(mask, base, query, sight.heads)
        return base

    def _for(self, query: Tensor) -> ReadyBlock:
        terms = (*self.inside, *self.after)
        wide = all(term.key.shape[-1] == query.shape[-1] for term in terms)
        return self if wide and self.foreseen.fits(query) else self._remade(query)

    @torch.compiler.disable()
    def _remade(self, query: Tensor) -> ReadyBlock:
        """For queries as they have come: another pack changes the rows inside the model."""
        rows = self.foreseen._replace(rows=query.shape[0], device=query.device, dtype=query.dtype)
        for injection in self.patch.injections:
            injection.prepared(self.call, query)  # which says what is wrong with the width
        return self.patch.ready(self.call, rows, self.norms)

    def _show(self, injection: Injection, query: Tensor, sight: Sight) -> None:
        if self.patch.recorder is not None:
            _record(self.patch.recorder, injection, query, sight, self.call)


@torch.compiler.disable()
def _record(
    recorder: Recorder, injection: Injection, query: Tensor, sight: Sight, call: CallState
) -> None:
    recorder(injection, query[:, sight.pixels], sight.extra, call)


def counted(terms: Sequence[Term] | Sequence[JoinedTerm]) -> bool:
    """Whether any of these has to be computed."""
    return any(term.counts for term in terms)


def _joined(
    injection: Injection, norms: Norms | None, call: CallState, foreseen: Foreseen
) -> JoinedTerm:
    """A term made ready, at the call's noise level."""
    layer = injection.layer
    if not isinstance(layer, LayerOverTime) or norms is None:
        raise TypeError("an adapter that joins softmaxes has norms of its own")
    width = injection.layer_at(call).cond.key.shape[-1]
    (grid,) = foreseen.grids
    queries = Queries((foreseen.rows, grid[0] * grid[1], width), *foreseen[1:3])
    scales = _scales(layer, norms, foreseen, call)
    own, image = (one.repeat(width // len(one)) for one in (scales.own, scales.image))
    parts: list[tuple[slice, Tensor, Tensor]] = []
    for part, pair in injection.by_chunk(call, queries):
        rows = len(range(*part.indices(foreseen.rows)))
        key, value = (
            one.repeat_interleave(rows // len(one), dim=0) for one in (pair.key * image, pair.value)
        )
        parts.append((part, key, value))
    mask, strength = _factor(injection, layer, queries, grid, call)
    acts = injection.acts(call)
    gate = gate_of(injection, strength if acts else 0.0, own, call)
    reach = None if mask is None else _reach(injection, mask, call)
    return JoinedTerm(injection, tuple(parts), own, mask, reach, acts, strength, gate)


def _scales(layer: LayerOverTime, block: Norms, foreseen: Foreseen, call: CallState) -> Scales:
    """How an adapter's norms differ from its block's, found out once per sampling run."""
    _, device, dtype, _ = foreseen
    slot = (layer, Scales, device, dtype)
    kept = call.prepared.get(slot)
    if kept is None:
        made = Scales.between(layer.norms.to(device), block.to(device))
        kept = call.prepared[slot] = Scales(made.own.to(dtype), made.image.to(dtype))
    return kept


def _factor(
    injection: Injection, layer: LayerOverTime, queries: Queries, grid: Grid, call: CallState
) -> tuple[Tensor | None, float]:
    """Mask and weight of the whole term: it has no values of its own that a weight folds into."""
    mask = injection.mask_for(call, queries, {"activations_shape": grid})
    if len(layer.weights) == 1:
        return mask, injection.strength * layer.weights[0]
    rows = call.rows(queries.shape[0])
    weights = layer.weight_of(rows.items) * len(rows.is_cond)
    by_row = torch.tensor(weights, device=queries.device, dtype=queries.dtype).view(-1, 1, 1)
    return (by_row if mask is None else by_row * mask), injection.strength


def _reach(injection: Injection, mask: Tensor, call: CallState) -> Tensor | None:
    """The positions that a mask lets a term act on, found out once per sampling run and window;
    None where they are most of them, and picking them costs more than it saves."""
    rows = call.rows(len(mask)) if len(mask) > 1 else None
    slot = (id(injection.mask), "reach", mask.shape, mask.device)
    kept = call.prepared.get(slot)
    if kept is None or kept[0] != rows:
        found = mask.any(0).flatten().nonzero().flatten()
        few = len(found) < _MOST * mask.shape[1]
        kept = call.prepared[slot] = (rows, found if few else None)
    return kept[1]


def spread_mask(term: Term, query: Tensor, sight: Sight, call: CallState) -> Tensor | None:
    """(1 or rows, length, 1) mask over all rows of a block, or None.

    Every grid has the mask. Text belongs to the whole picture and takes the mask's mean, so that
    the parts of a picture add up to the whole; reference pictures lie outside of it.
    """
    if term.masks is None:
        return None
    grid, rest = term.masks[sight.grid[0] * sight.grid[1]], query.shape[1] - sight.pixels.stop
    if grid is None or (sight.text == 0 and rest == 0):
        return grid
    if is_compiling():
        return _spread(grid, sight, rest)
    slot = (id(grid), sight.text, rest)
    kept = call.prepared.get(slot)
    if kept is None:
        kept = call.prepared[slot] = (_spread(grid, sight, rest), grid)  # keeps the id in use
    return kept[0]


def _spread(grid: Tensor, sight: Sight, rest: int) -> Tensor:
    mean = grid.mean(1, keepdim=True).expand(-1, sight.text, -1)
    others = rest - grid.shape[1] * (sight.frames - 1)
    nothing = grid.new_zeros(grid.shape[0], others, 1)
    return torch.cat([mean, grid.repeat(1, sight.frames, 1), nothing], 1)


def unroped(query: Tensor, rotation: Tensor) -> Tensor:
    """A query without its rotary embedding: (rows, heads, length, dim).

    rotation: (1 or rows, 1, length, dim / 2, 2, 2), which turns pairs of numbers; its transpose
    turns them back.
    """
    pairs = query.to(rotation.dtype).unflatten(-1, (-1, 1, 2))
    back = rotation[..., 0, :] * pairs[..., 0] + rotation[..., 1, :] * pairs[..., 1]
    return back.flatten(-2).to(query.dtype)
