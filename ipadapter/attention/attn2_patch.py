"""What sits in a block's attn2 slot while a patched MODEL samples.

A patch is plain and immutable: keys and values per adapter, a range, a mask. It chains over
whatever held the slot before. What changes during a sampling (sigma, which rows are cond, copies on
the device) is in the call's own state, never in the patch, so clones may share it freely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .injection import Injection, Recorder
from .rows import CallState, Extra
from .terms import Foreseen, Term

# Where a patch asks what it wraps to note the terms that patches of ours inside it have added.
_DONE = "ip_adapter_done"
_OVERRIDE = "optimized_attention_override"

Replacement = Callable[[Tensor, Tensor, Tensor, Extra], Tensor]


@dataclass(frozen=True, eq=False)
class StackedCallback:
    """A term that another pack stacked onto our slot with `.add`, and the noise levels at which it
    acts, both ends included: other packs leave that test to the slot's owner."""

    callback: Callable[..., Tensor]
    kwargs: Mapping[str, Any]
    start: float
    end: float

    def acts(self, call: CallState) -> bool:
        """True unless the call's noise level lies outside the range."""
        always = self.end <= 0.0 and self.start >= 1e6
        return always or call.sigma is None or self.end <= call.sigma <= self.start


Part = Injection | StackedCallback


class AttentionPatch:
    """Callable for a block's attn2 slot: what held the slot before, plus the image attention
    of each injection."""

    def __init__(
        self,
        attention: Replacement,
        injections: Sequence[Injection] = (),
        previous: Replacement | None = None,
        stacked: Sequence[StackedCallback] = (),
        *,
        recorder: Recorder | None = None,
    ) -> None:
        """attention: the host's own cross-attention, used where nothing held the slot
        (`previous`). recorder: is shown every injection as it acts."""
        self.attention = attention
        self.injections = tuple(injections)
        self.previous = previous
        self.stacked = list(stacked)
        self.recorder = recorder

    @torch.compiler.disable()
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra_options: Extra) -> Tensor:
        """query: (rows, length, width); key, value: (rows, text tokens, width).
        Returns query's shape.

        For callers that go past the model's own call, which has patches made ready.
        """
        call = CallState.of_block(extra_options, query.shape[0])
        return ReadyPatch(self, call, ())(query, key, value, extra_options)

    def ready(self, call: CallState, foreseen: Foreseen) -> ReadyPatch:
        """The patch for one call of the model."""
        terms = (Term.ready(one, call, foreseen) for one in self.injections)
        return ReadyPatch(self, call, tuple(terms), foreseen)

    def with_injection(self, injection: Injection) -> AttentionPatch:
        """A new patch that also does `injection`; this one stays as it is."""
        return self._copy(injections=(*self.injections, injection))

    def with_recorder(self, recorder: Recorder | None) -> AttentionPatch:
        """A new patch that shows its injections to `recorder`; this one stays as it is."""
        return self._copy(recorder=recorder)

    def fork(self) -> AttentionPatch:
        """A copy for a cloned MODEL, so that what is stacked onto the clone stays there."""
        return self._copy()

    def _copy(self, **changes: Any) -> AttentionPatch:
        fields: dict[str, Any] = {
            "injections": self.injections,
            "previous": self.previous,
            "stacked": self.stacked,
            "recorder": self.recorder,
        }
        return AttentionPatch(self.attention, **{**fields, **changes})

    def over(self, late: Replacement | None) -> AttentionPatch:
        """The same terms on top of what took the slot later."""
        return self._copy(previous=late)

    def joined(self, other: AttentionPatch) -> AttentionPatch:
        """The terms of both, each once, on top of what this one is on."""
        return self._copy(
            injections=_each_once((*self.injections, *other.injections)),
            stacked=_each_once((*self.stacked, *other.stacked)),
        )

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        """Stack a foreign term onto this slot: `callback(out, q, k, v, extra_options,
        **kwargs)` returns a delta.

        The de facto protocol of IP-Adapter, InstantID and PuLID packs, which call it on an occupied
        slot. The term acts while `sigma_end <= sigma <= sigma_start` of its kwargs.
        """
        start, end = kwargs.get("sigma_start", math.inf), kwargs.get("sigma_end", 0.0)
        self.stacked.append(StackedCallback(callback, kwargs, float(start), float(end)))

    def to(self, device_or_dtype: Any) -> AttentionPatch:
        """The host's memory management calls this. Our keys and values follow the query instead;
        what held the slot before may want to move."""
        move = getattr(self.previous, "to", None)
        if not callable(move):
            return self
        moved: Any = move(device_or_dtype)
        if moved is None or moved is self.previous:
            return self
        return self._copy(previous=moved)

    def models(self) -> list[Any]:
        """Model patchers that what held the slot before wants loaded."""
        inner: Any = getattr(self.previous, "models", None)
        return [] if inner is None else list(inner())

    def cleanup(self) -> None:
        """Pass the host's end-of-sampling call on to what held the slot before."""
        inner = getattr(self.previous, "cleanup", None)
        if callable(inner):
            inner()

    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(injection.layer.nbytes() for injection in self.injections)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPatch:
        """Older hosts deep-copy model options on every clone; immutable content needs no copy."""
        return self


class ReadyPatch:
    """A patch in one call of the model, where its terms are ready."""

    def __init__(
        self,
        patch: AttentionPatch,
        call: CallState,
        terms: tuple[Term, ...],
        foreseen: Foreseen | None = None,
    ) -> None:
        """foreseen: what the terms are ready for; None where they are made in the block."""
        self.patch, self.call = patch, call
        self.terms, self.foreseen = terms, foreseen
        self.before = patch.previous or patch.attention
        self.chained = patch.previous is not None
        self.fresh = call.fresh and patch.previous is None
        self.stacked = tuple(one for one in patch.stacked if one.acts(call))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra_options: Extra) -> Tensor:
        """As the patch."""
        done: list[Part] = []
        # What came after us may have kept our patch and call it: each term acts once.
        inner = {**extra_options, _DONE: done} if self.chained else extra_options
        base = self.before(query, key, value, inner)
        owned = self.fresh and _OVERRIDE not in extra_options
        if self._fits(query):
            for term in self.terms:
                if term.counts and not _is_in(term.injection, done):
                    base = term.added(base if owned else base.clone(), query, extra_options)
                    owned = True
        else:
            base = self._unforeseen(base, owned, query, extra_options, done)
        for one in self.stacked:
            if not _is_in(one, done):
                base = base + one.callback(base, query, key, value, extra_options, **one.kwargs)
        if _DONE in extra_options:
            extra_options[_DONE].extend((*done, *self.patch.injections, *self.patch.stacked))
        return base

    def _fits(self, query: Tensor) -> bool:
        if self.foreseen is None or self.patch.recorder is not None:
            return False
        return self.foreseen.fits(query) and all(term.placed(query) for term in self.terms)

    @torch.compiler.disable()
    def _unforeseen(
        self, base: Tensor, owned: bool, query: Tensor, extra: Extra, done: Sequence[Part]
    ) -> Tensor:
        """`base`, which may be overwritten if it is owned, with terms for queries as they have
        come: where another pack changes rows or grid inside the model, or somebody records."""
        for injection in self.patch.injections:
            if injection.acts(self.call) and not _is_in(injection, done):
                if self.patch.recorder is not None:
                    self.patch.recorder(injection, query, extra, self.call)
                term = Term.now(injection, query, extra, self.call)
                base = term.added(base if owned else base.clone(), query, extra)
                owned = True
        return base


def _is_in(part: Part, done: Sequence[Part]) -> bool:
    return any(one is part for one in done)


def _each_once(terms: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(terms))
