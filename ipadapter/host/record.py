"""Attaching a recorder to the image prompts of a MODEL."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ..errors import Problem
from ..patch import AttentionPatch, Recorder
from .slots import slots_of, with_slots


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
