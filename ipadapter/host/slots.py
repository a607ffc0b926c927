"""Attaching a recorder to the image prompts of a MODEL."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import comfy.ldm.modules.attention as host_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.attn2_patch import AttentionPatch
from ..attention.injection import Injection, Recorder
from ..attention.rows import Extra
from ..bases.layout import BlockId, Layer
from ..errors import Problem


def record_attention(model: ModelPatcher, recorder: Recorder) -> ModelPatcher:
    """A clone whose image prompts are shown to `recorder`. ValueError if the MODEL has none."""
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    slots = slots_of(options)
    # A slot may be registered under two keys: both keep holding one and the same patch.
    patches = {id(p): p for p in slots.values() if isinstance(p, AttentionPatch)}
    if not patches:
        raise Problem.WRONG_INPUT(
            "This MODEL carries no image prompt to record: connect the MODEL output of an "
            "IPAdapter node."
        )
    recording = {key: patch.with_recorder(recorder) for key, patch in patches.items()}
    shown = {key: recording.get(id(patch), patch) for key, patch in slots.items()}
    clone.model_options["transformer_options"] = with_slots(options, shown)
    return clone


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


def place(slots: Slots, injections: Mapping[Layer, Injection]) -> dict[SlotKey, AttentionPatch]:
    """New patches for the slots of some layers, each on top of what holds the slot now."""
    placed: dict[SlotKey, AttentionPatch] = {}
    for layer, injection in injections.items():
        name, number, index = layer.block
        occupant = slots.get((name, number, index), slots.get((name, number)))
        patch = chain(occupant, layer.block).with_injection(injection)
        placed[name, number, index] = patch
        if layer.depth == 1:
            # Other packs address such blocks by name and number alone; a key of three parts would
            # shadow theirs.
            placed[name, number] = patch
    return placed


def reclaim(slots: Slots, ours: Mapping[SlotKey, AttentionPatch]) -> dict[SlotKey, Any]:
    """Slots for a sampling run in which our patches act, whatever was put over them later.

    Nodes after ours may overwrite a slot, or use a block's short key, which our full key hides.
    What came last then keeps the slot, and our terms are added unless it calls our patch itself.
    """
    claimed = dict(slots)
    for key, patch in ours.items():
        holder, short = slots.get(key), slots.get(key[:2])
        late = short if isinstance(holder, AttentionPatch) else holder
        if len(key) == 2 or isinstance(late, AttentionPatch) or not callable(late):
            continue
        if late is not patch.previous:
            claimed[key] = patch.over(late)
    return claimed


def chain(occupant: Any, block: BlockId) -> AttentionPatch:
    """A patch that goes on from whatever holds a slot."""
    if isinstance(occupant, AttentionPatch):
        return occupant
    if occupant is not None and not callable(occupant):
        raise Problem.OTHER_PACK(
            f"Attention slot {tuple(block)} of this MODEL holds a {type(occupant).__name__}, which "
            "is not callable: a node before this one left it there. Move the IP-Adapter node "
            "before that node, or remove that node."
        )
    return AttentionPatch(text_attention, previous=occupant)
