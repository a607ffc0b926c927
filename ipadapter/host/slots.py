"""The attn2 slots of a UNet's blocks: who holds one, and how a patch goes on from there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import comfy.ldm.modules.attention as host_attention
from torch import Tensor

from ..attention.attn2_patch import AttentionPatch, Replacement
from ..attention.injection import Injection, Recorder
from ..attention.rows import CallState, Extra
from ..attention.terms import Foreseen
from ..bases.layout import BlockId, Layer
from ..errors import Problem

SlotKey = tuple[str, int] | tuple[str, int, int]
Slots = Mapping[SlotKey, Any]

_PARAMETERS = inspect.signature(host_attention.attention_basic).parameters
_TAKES_OPTIONS = "transformer_options" in _PARAMETERS or "kwargs" in _PARAMETERS


def text_attention(query: Tensor, key: Tensor, value: Tensor, extra: Extra) -> Tensor:
    """The host's own cross-attention, as its transformer block would call it."""
    options: dict[str, Any] = {"attn_precision": extra.get("attn_precision")}
    if _TAKES_OPTIONS:
        options["transformer_options"] = extra
    return host_attention.optimized_attention(query, key, value, extra["n_heads"], **options)


def slots_of(options: Mapping[str, Any]) -> Slots:
    """The attn2 slots of some transformer options."""
    return options.get("patches_replace", {}).get("attn2", {})


def with_slots(options: Mapping[str, Any], slots: Slots) -> dict[str, Any]:
    """Copy of transformer options that holds other attn2 slots; the given ones stay as they are."""
    replaced = {**options.get("patches_replace", {}), "attn2": dict(slots)}
    return {**options, "patches_replace": replaced}


def ready(slots: Slots, call: CallState, foreseen: Foreseen) -> dict[SlotKey, Any]:
    """The slots of one model call, whose patches have their terms ready."""
    patches = {id(p): p for p in slots.values() if isinstance(p, AttentionPatch)}
    made = {key: patch.ready(call, foreseen) for key, patch in patches.items()}
    return {key: made.get(id(patch), patch) for key, patch in slots.items()}


def recorded(slots: Slots, recorder: Recorder) -> dict[SlotKey, Any]:
    """Slots whose patches show their terms to `recorder`; empty where none is ours."""
    # A slot may be registered under two keys: both keep holding one and the same patch.
    patches = {id(p): p for p in slots.values() if isinstance(p, AttentionPatch)}
    if not patches:
        return {}
    recording = {key: patch.with_recorder(recorder) for key, patch in patches.items()}
    return {key: recording.get(id(patch), patch) for key, patch in slots.items()}


def place(
    slots: Slots, injections: Mapping[Layer, Injection], ours: Mapping[SlotKey, AttentionPatch]
) -> dict[SlotKey, AttentionPatch]:
    """New patches for the slots of some layers, each on top of what holds the slot now.

    ours: the patches that were placed before; what a later node put over them does not lose them.
    """
    placed: dict[SlotKey, AttentionPatch] = {}
    for layer, injection in injections.items():
        name, number, index = layer.block
        full, short = (name, number, index), (name, number)
        patch = chain(slots, ours, layer.block).with_injection(injection)
        placed[full] = patch
        if layer.depth == 1:
            # Other packs address such blocks by name and number alone; a key of three parts would
            # shadow theirs.
            placed[short] = patch
    return placed


def reclaim(slots: Slots, ours: Mapping[SlotKey, AttentionPatch]) -> dict[SlotKey, Any]:
    """Slots for a sampling run in which our patches act, whatever was put over them later."""
    claimed = dict(slots)
    for key in ours:
        if len(key) == 3 and (key in slots or key[:2] in slots):
            claimed[key] = chain(slots, ours, BlockId(*key))
    return claimed


def chain(slots: Slots, ours: Mapping[SlotKey, AttentionPatch], block: BlockId) -> AttentionPatch:
    """A patch that goes on from whatever holds a block's slot.

    Nodes after ours may overwrite the slot, or use the block's short key, which our full key hides.
    What came last keeps the slot; our terms go on top, and each acts once even if that calls our
    patch itself.
    """
    name, number, index = block
    kept = ours.get((name, number, index))
    full: Replacement | None = slots.get((name, number, index))
    short: Replacement | None = slots.get((name, number))
    holder = short if full is None else full
    if holder is None:  # nobody came, or somebody took ours away
        return AttentionPatch(text_attention)
    if isinstance(holder, AttentionPatch):
        patch = holder if kept is None or kept is holder else holder.joined(kept)
        late = short if full is not None and not isinstance(short, AttentionPatch) else None
        hidden = callable(late) and late is not patch.previous
        return patch.over(late) if hidden else patch
    if not callable(holder):
        raise Problem.OTHER_PACK(
            f"Attention slot {tuple(block)} of this MODEL holds a {type(holder).__name__}, which "
            "is not callable: a node before this one left it there. Move the IP-Adapter node "
            "before that node, or remove that node."
        )
    return (kept or AttentionPatch(text_attention)).over(holder)


def attention_is_fresh(options: Mapping[str, Any]) -> bool:
    """Whether the host's own cross-attention gives a tensor that nobody else holds: not where a
    pack has put another function in its place."""
    module = getattr(host_attention.optimized_attention, "__module__", "")
    return "optimized_attention_override" not in options and module == host_attention.__name__
