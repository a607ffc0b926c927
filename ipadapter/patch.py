"""What sits in a block's attn2 slot while a patched MODEL samples.

A patch is plain and immutable: keys and values per adapter, a sigma range, a mask. It chains over
whatever held the slot before. What changes during a sampling (sigma, which rows are cond, copies on
the device) is in the call's own state, never in the patch, so clones may share it freely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .attention import Factor, add_image_attention
from .call import CALL_KEY, CallState, Extra, Rows
from .errors import Problem
from .folding import KeyValue, LayerKeyValue
from .mask import block_grid, mask_rows, warn_unplaced
from .schedule import ALWAYS, SigmaRange

_WITNESS = "ip_adapter_witness"  # where a patch notes that what it wraps has called a patch itself

Replacement = Callable[[Tensor, Tensor, Tensor, Extra], Tensor]
Recorder = Callable[["Injection", Tensor, Extra, CallState], None]


@dataclass(frozen=True, eq=False)
class Injection:
    """One adapter in one block.

    layer: keys and values with everything folded in. mask: (masks, H, W) or None; mask i belongs to
    latent i, the last one to all later latents. With one item the prompt serves the whole batch;
    with n, item i serves latent i, the last one all later latents. strength: of the whole term, for
    strengths that change from step to step. images: reference pictures that share the tokens.
    """

    layer: LayerKeyValue
    sigmas: SigmaRange = ALWAYS
    mask: Tensor | None = None
    strength: float = 1.0
    images: int = 1

    @property
    def items(self) -> int:
        """Number of per-latent prompts: 1 serves the whole batch."""
        pairs = (self.layer.cond, self.layer.uncond)
        return max(tensor.shape[0] for pair in pairs for tensor in (pair.key, pair.value))

    def acts(self, call: CallState) -> bool:
        """True unless the call's noise level lies outside the range."""
        return self.sigmas.always or self.sigmas.contains(call.sigma)

    def with_strength(self, strength: float) -> Injection:
        """The same at another strength; device copies of keys and values stay shared."""
        return replace(self, strength=strength)

    def prepared(self, call: CallState, query: Tensor) -> KeyValue:
        """Keys and values on the query's device and dtype, one group of rows after another.

        (chunks, tokens, width) where a prompt serves whole chunks, else (rows, tokens, width). Made
        once per sampling run for each pattern of cond and uncond chunks; of per-latent prompts only
        the current window is kept.
        """
        rows = call.rows(query.shape[0])
        items = (0,) if self.items == 1 else rows.items
        slot = (self.layer, rows.is_cond, query.device, query.dtype)
        kept = call.prepared.get(slot)
        if kept is None or kept[0] != items:
            kept = (items, _gather(self.layer, rows.is_cond, items, query))
            call.prepared[slot] = kept
        return kept[1]

    def mask_for(self, call: CallState, query: Tensor, extra: Extra) -> Tensor | None:
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
    layer: LayerKeyValue, chunks: Sequence[bool], items: Sequence[int], query: Tensor
) -> KeyValue:
    """Stack the rows' keys and values, then move them in one copy."""
    width = layer.cond.key.shape[-1]
    if width != query.shape[-1]:
        raise Problem.WRONG_BASE(
            f"The image prompt was made for a layer of width {width}, this MODEL's is "
            f"{query.shape[-1]}: make the prompt from the same MODEL that samples."
        )
    tokens = max(layer.cond.key.shape[1], layer.uncond.key.shape[1])

    def stack(cond: Tensor, uncond: Tensor) -> Tensor:
        parts = [_pick(cond if is_cond else uncond, items, tokens) for is_cond in chunks]
        return torch.cat(parts).to(query.device, query.dtype)

    return KeyValue(
        stack(layer.cond.key, layer.uncond.key), stack(layer.cond.value, layer.uncond.value)
    )


def _pick(tensor: Tensor, items: Sequence[int], tokens: int) -> Tensor:
    """Rows of the given items; fewer tokens are repeated, which leaves a softmax over whole copies
    unchanged."""
    rows = tensor[[min(item, tensor.shape[0] - 1) for item in items]]
    if rows.shape[1] == tokens:
        return rows
    if tokens % rows.shape[1]:
        raise Problem.EMBEDS_MISMATCH(
            f"Image prompts of {rows.shape[1]} and {tokens} tokens cannot share a batch."
        )
    return rows.repeat(1, tokens // rows.shape[1], 1)


@dataclass(frozen=True, eq=False)
class StackedCallback:
    """A term that another pack stacked onto our slot with `.add`, and when it acts: other packs
    leave that test to the slot's owner."""

    callback: Callable[..., Tensor]
    kwargs: Mapping[str, Any]
    sigmas: SigmaRange

    def acts(self, call: CallState) -> bool:
        """True unless the call's noise level lies outside the range."""
        return self.sigmas.always or self.sigmas.contains(call.sigma)


class AttentionPatch:
    """Callable for a block's attn2 slot: what held the slot before, plus the image attention of
    each injection."""

    def __init__(
        self,
        attention: Replacement,
        injections: Sequence[Injection] = (),
        previous: Replacement | None = None,
        stacked: Sequence[StackedCallback] = (),
        *,
        overlaid: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        """attention: the host's own cross-attention, used where nothing held the slot
        (`previous`). overlaid: `previous` came later and may call a patch of ours itself.
        recorder: is shown every injection as it acts."""
        self.attention = attention
        self.injections = tuple(injections)
        self.previous = previous
        self.stacked = list(stacked)
        self.overlaid = overlaid
        self.recorder = recorder

    @torch.compiler.disable()
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra_options: Extra) -> Tensor:
        """query: (rows, length, width); key, value: (rows, text tokens, width). Returns query's
        shape."""
        if _WITNESS in extra_options:
            extra_options[_WITNESS].append(self)
        if self.overlaid:
            witness: list[AttentionPatch] = []
            extra_options = {**extra_options, _WITNESS: witness}
        base = (self.previous or self.attention)(query, key, value, extra_options)
        if self.overlaid and witness:
            return base
        call = extra_options.get(CALL_KEY) or CallState.from_extra(extra_options, query.shape[0])
        owned = self.previous is None
        for injection in self.injections:
            if injection.acts(call):
                if self.recorder is not None:
                    self.recorder(injection, query, extra_options, call)
                base = inject(
                    injection, base if owned else base.clone(), query, extra_options, call
                )
                owned = True
        for term in self.stacked:
            if term.acts(call):
                base = base + term.callback(base, query, key, value, extra_options, **term.kwargs)
        return base

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
        fields = {
            "injections": self.injections,
            "previous": self.previous,
            "stacked": self.stacked,
            "recorder": self.recorder,
        }
        return AttentionPatch(self.attention, **{**fields, **changes})

    def over(self, late: Replacement) -> AttentionPatch:
        """The same terms on top of what took the slot later; none if that calls our patch."""
        return self._copy(previous=late, overlaid=True)

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        """Stack a foreign term onto this slot: `callback(out, q, k, v, extra_options, **kwargs)`
        returns a delta.

        The de facto protocol of IP-Adapter, InstantID and PuLID packs, which call it on an occupied
        slot. The term acts while `sigma_end <= sigma <= sigma_start` of its kwargs.
        """
        sigmas = SigmaRange(
            float(kwargs.get("sigma_start", ALWAYS.start)), float(kwargs.get("sigma_end", 0.0))
        )
        self.stacked.append(StackedCallback(callback, kwargs, sigmas))

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

    def __deepcopy__(self, memo: dict) -> AttentionPatch:
        """Older hosts deep-copy model options on every clone; immutable content needs no copy."""
        return self


def inject(
    injection: Injection, base: Tensor, query: Tensor, extra: Extra, call: CallState
) -> Tensor:
    """Add one adapter's image attention to `base`, which may be overwritten."""
    pair = injection.prepared(call, query)
    heads = extra.get("n_heads")
    if heads is None:
        raise Problem.OTHER_PACK(
            "The caller of this attention slot gives no n_heads in extra_options, so the image "
            "prompt cannot split its heads. Sample with ComfyUI's own UNet."
        )
    factor = Factor(injection.mask_for(call, query, extra), injection.strength)
    if extra.get("attn_precision") == torch.float32 and query.dtype != torch.float32:
        wide = add_image_attention(
            base.float(), query.float(), pair.key.float(), pair.value.float(), heads, factor
        )
        return wide.to(base.dtype)
    return add_image_attention(base, query, pair.key, pair.value, heads, factor)
