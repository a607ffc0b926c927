"""What sits in a block's attn2 slot while a patched MODEL samples.

A patch is plain and immutable: keys and values per adapter, a sigma range, a mask. It chains over
whatever held the slot before. What changes during a sampling (sigma, which rows are cond, copies on
the device) is in the call's own state, never in the patch, so clones may share it freely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attention import add_image_attention
from .folding import KeyValue, LayerKeyValue
from .mask import mask_rows
from .schedule import ALWAYS, SigmaRange

CALL_KEY = "ip_adapter_call"  # where the host seam puts a CallState among the transformer options

Extra = Mapping[str, Any]
Replacement = Callable[[Tensor, Tensor, Tensor, Extra], Tensor]


@dataclass(frozen=True, eq=False)
class CallState:
    """What is the same for every block of one model call.

    sigma: the noise level, or None if no adapter asked for it. is_cond: per chunk of rows, whether
    it belongs to the positive prompt. items: which latent of the whole batch each row of a chunk is
    (windows of long batches).
    prepared: device copies of keys and values, alive for one sampling run.
    """

    is_cond: tuple[bool, ...]
    items: tuple[int, ...]
    sigma: float | None = None
    prepared: MutableMapping[Any, Any] = field(default_factory=dict)

    def layout(self, count: int) -> tuple[tuple[bool, ...], tuple[int, ...]]:
        """Chunks of a batch of `count` rows (their cond flags), and the latent of each row of a
        chunk.

        Tiled batches repeat the chunks; a caller that changed the batch in another way has its rows
        counted from 0.
        """
        chunk_rows = len(self.is_cond) * len(self.items)
        if count % chunk_rows == 0:
            return self.is_cond * (count // chunk_rows), self.items
        if count % len(self.is_cond) == 0:
            return self.is_cond, tuple(range(count // len(self.is_cond)))
        return (True,), tuple(range(count))

    @classmethod
    def from_extra(cls, extra: Extra, count: int) -> CallState:
        """State of a caller that runs the model without the host seam: by `cond_or_uncond` alone,
        else all cond."""
        flags = tuple(index == 0 for index in extra.get("cond_or_uncond") or (0,))
        chunk = max(count // len(flags), 1)
        return cls(flags, items_of(extra, chunk), sigma_of(extra))

    def __deepcopy__(self, memo: dict) -> CallState:
        """Shared by everything that runs in this call."""
        return self


def sigma_of(extra: Extra) -> float | None:
    """Noise level of a call, read from the device."""
    sigmas = extra.get("sigmas")
    return None if sigmas is None else float(sigmas.flatten()[0])


def items_of(extra: Extra, chunk: int) -> tuple[int, ...]:
    """Which latents of the whole batch the rows of one chunk are.

    Core context windows name them in `context_window.index_list`, AnimateDiff-Evolved in
    `ad_params["sub_idxs"]`.
    """
    window = getattr(extra.get("context_window"), "index_list", None)
    window = window or (extra.get("ad_params") or {}).get("sub_idxs")
    if window and chunk % len(window) == 0:
        return tuple(int(i) for i in window) * (chunk // len(window))
    return tuple(range(chunk))


@dataclass(frozen=True, eq=False)
class Injection:
    """One adapter in one block.

    layer: keys and values with everything folded in. mask: (masks, H, W) or None; mask i belongs to
    latent i, the last one to all later latents. With one item the prompt serves the whole batch;
    with n, item i serves latent i.
    """

    layer: LayerKeyValue
    sigmas: SigmaRange = ALWAYS
    mask: Tensor | None = None

    @property
    def items(self) -> int:
        """Number of per-latent prompts: 1 serves the whole batch."""
        pairs = (self.layer.cond, self.layer.uncond)
        return max(tensor.shape[0] for pair in pairs for tensor in (pair.key, pair.value))

    def prepared(self, call: CallState, query: Tensor) -> KeyValue:
        """Keys and values on the query's device and dtype, one group of rows after another.

        (chunks, tokens, width) where a prompt serves whole chunks, else (rows, tokens, width). Made
        once per sampling run for each layout of rows; of per-latent prompts only the current window
        is kept.
        """
        layout = chunks, items = call.layout(query.shape[0])
        if self.items == 1:
            layout = chunks, items = chunks, (0,)
        slot = (id(self), query.device, query.dtype)
        kept = call.prepared.get(slot)
        if kept is None or kept[0] != layout:
            kept = (layout, _gather(self.layer, chunks, items, query))
            call.prepared[slot] = kept
        return kept[1]

    def mask_for(self, call: CallState, query: Tensor, extra: Extra) -> Tensor | None:
        """(1 or rows, length, 1) mask on the block's own grid, or None. Resized once per sampling
        run and grid."""
        if self.mask is None:
            return None
        height, width = block_grid(query.shape[1], extra)
        layout = chunks, items = call.layout(query.shape[0])
        slot = (id(self.mask), query.device, query.dtype, height, width)
        kept = call.prepared.get(slot)
        if kept is None or kept[0] != layout:
            rows = mask_rows(self.mask, height, width)
            if rows.shape[0] > 1:
                rows = rows[[min(item, rows.shape[0] - 1) for item in items] * len(chunks)]
            kept = (layout, rows.to(query.device, query.dtype))
            call.prepared[slot] = kept
        return kept[1]


def block_grid(length: int, extra: Extra) -> tuple[int, int]:
    """Height and width of a block's grid: the host's `activations_shape`, else from the latent's
    aspect."""
    shape = extra.get("activations_shape")
    if shape is not None and shape[-2] * shape[-1] == length:
        return int(shape[-2]), int(shape[-1])
    original = extra.get("original_shape")
    if original is not None:
        height, width = original[-2], original[-1]
        for _ in range(8):
            if height * width == length:
                return int(height), int(width)
            height, width = -(-height // 2), -(-width // 2)
    raise ValueError(
        f"attn_mask cannot be placed: a block has {length} positions and the caller gives neither "
        "activations_shape nor a fitting original_shape. Remove the mask, or sample with ComfyUI's "
        "own samplers."
    )


def _gather(
    layer: LayerKeyValue, chunks: Sequence[bool], items: Sequence[int], query: Tensor
) -> KeyValue:
    """Stack the rows' keys and values, then move them in one copy."""
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
        raise ValueError(
            f"Image prompts of {rows.shape[1]} and {tokens} tokens cannot share a batch."
        )
    return rows.repeat(1, tokens // rows.shape[1], 1)


@dataclass(frozen=True, eq=False)
class StackedCallback:
    """A term that another pack stacked onto our slot with `.add`."""

    callback: Callable[..., Tensor]
    kwargs: Mapping[str, Any]

    def active(self, sigma: float | None) -> bool:
        """Other packs leave the sigma test to the slot's owner."""
        if sigma is None:
            return True
        return (
            self.kwargs.get("sigma_end", 0.0)
            <= sigma
            <= self.kwargs.get("sigma_start", float("inf"))
        )


class AttentionPatch:
    """Callable for a block's attn2 slot: what held the slot before, plus the image attention of
    each injection."""

    def __init__(
        self,
        attention: Replacement,
        injections: Sequence[Injection] = (),
        previous: Replacement | None = None,
        stacked: Sequence[StackedCallback] = (),
    ) -> None:
        """attention: the host's own cross-attention, used where nothing held the slot
        (`previous`)."""
        self.attention = attention
        self.injections = tuple(injections)
        self.previous = previous
        self.stacked = list(stacked)

    @torch.compiler.disable()
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra_options: Extra) -> Tensor:
        """query: (rows, length, width); key, value: (rows, text tokens, width). Returns query's
        shape."""
        base = (self.previous or self.attention)(query, key, value, extra_options)
        call = extra_options.get(CALL_KEY) or CallState.from_extra(extra_options, query.shape[0])
        owned = self.previous is None
        for injection in self.injections:
            if injection.sigmas.contains(call.sigma):
                base = inject(
                    injection, base if owned else base.clone(), query, extra_options, call
                )
                owned = True
        for term in self.stacked:
            if term.active(call.sigma):
                base = base + term.callback(base, query, key, value, extra_options, **term.kwargs)
        return base

    def with_injection(self, injection: Injection) -> AttentionPatch:
        """A new patch that also does `injection`; this one stays as it is."""
        return AttentionPatch(
            self.attention, (*self.injections, injection), self.previous, self.stacked
        )

    def fork(self) -> AttentionPatch:
        """A copy for a cloned MODEL, so that what is stacked onto the clone stays there."""
        return AttentionPatch(self.attention, self.injections, self.previous, self.stacked)

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        """Stack a foreign term onto this slot: `callback(out, q, k, v, extra_options, **kwargs)`
        returns a delta.

        The de facto protocol of IP-Adapter, InstantID and PuLID packs, which call it on an occupied
        slot.
        """
        self.stacked.append(StackedCallback(callback, kwargs))

    def to(self, _device_or_dtype: Any) -> AttentionPatch:
        """The host's memory management calls this; keys and values follow the query instead."""
        return self

    def models(self) -> list[Any]:
        """Model patchers that what held the slot before wants loaded."""
        inner: Any = getattr(self.previous, "models", None)
        return [] if inner is None else list(inner())

    def cleanup(self) -> None:
        """Pass the host's end-of-sampling call on to what held the slot before."""
        inner = getattr(self.previous, "cleanup", None)
        if callable(inner):
            inner()

    @property
    def asks_for_sigma(self) -> bool:
        """True if anything in this slot depends on the noise level, so that it must be read from
        the device."""
        return (
            bool(self.stacked)
            or not all(injection.sigmas.always for injection in self.injections)
            or bool(getattr(self.previous, "asks_for_sigma", False))
        )

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
    mask = injection.mask_for(call, query, extra)
    heads = int(extra["n_heads"])
    if extra.get("attn_precision") == torch.float32 and query.dtype != torch.float32:
        wide = add_image_attention(
            base.float(), query.float(), pair.key.float(), pair.value.float(), heads, mask=mask
        )
        return wide.to(base.dtype)
    return add_image_attention(base, query, pair.key, pair.value, heads, mask=mask)
