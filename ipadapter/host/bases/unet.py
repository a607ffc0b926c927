"""Reading a MODEL's cross-attention layout, and putting patches into its slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ...attention.attn2_patch import AttentionPatch
from ...attention.injection import Injection, Recorder
from ...bases.layout import BlockId, Layer, Layout
from ...bases.unet import unet_layout
from ...errors import Problem
from ..sampling import WRAPPER_KEY, add_wrappers
from ..slots import SlotKey, place, recorded, slots_of, with_slots


def read_layout(model: ModelPatcher) -> Layout:
    """The cross-attention layout of a MODEL, in adapter order: input, output, middle.

    Raises ValueError for models without text cross-attention slots (Flux, SD3 and other
    transformers) and for video UNets, whose time layers share the slots.
    """
    unet = model.get_model_object("diffusion_model")
    found = list(_transformers(unet))
    if not found:
        raise Problem.UNSUPPORTED(
            f"This MODEL ({type(model.model).__name__}, {type(unet).__name__}) has no UNet "
            "cross-attention, so an IP-Adapter for Stable Diffusion cannot act on it. Load an "
            "SD1.5, SD2 or SDXL checkpoint."
        )
    if any(isinstance(transformer, SpatialVideoTransformer) for _, _, transformer in found):
        raise Problem.UNSUPPORTED(
            f"This MODEL ({type(model.model).__name__}) is a video UNet, whose time layers share "
            "the attention slots of its picture layers; IP-Adapters are not made for it. Load an "
            "SD1.5, SD2 or SDXL checkpoint."
        )
    order = {id(transformer): t for t, (_, _, transformer) in enumerate(found)}
    layers, context_dim = [], 0
    for name in ("input", "output", "middle"):
        for block, number, transformer in found:
            if block == name:
                blocks = list(transformer.transformer_blocks)
                for index, attn2 in _cross_attentions(blocks):
                    layers.append(
                        Layer(
                            BlockId(name, number, index),
                            order[id(transformer)],
                            attn2.heads * attn2.dim_head,
                            len(blocks),
                        )
                    )
                    context_dim = attn2.to_k.in_features
    return unet_layout(layers, context_dim)


def has_slots(network: nn.Module) -> bool:
    """Whether a network has cross-attentions to text of the UNet kind."""
    return any(True for _ in _transformers(network))


def _cross_attentions(blocks: list[nn.Module]) -> Iterator[tuple[int, Any]]:
    for index, block in enumerate(blocks):
        attn2 = getattr(block, "attn2", None)
        if attn2 is not None:
            yield index, attn2


def _transformers(unet: nn.Module) -> Iterator[tuple[str, int, SpatialTransformer]]:
    """SpatialTransformers in execution order, with the host's block names and numbers."""
    parts: list[tuple[str, int, Any]] = []
    parts += [("input", n, block) for n, block in enumerate(getattr(unet, "input_blocks", ()))]
    middle = getattr(unet, "middle_block", None)
    parts += [("middle", 0, middle)] if middle is not None else []
    parts += [("output", n, block) for n, block in enumerate(getattr(unet, "output_blocks", ()))]
    for name, number, block in parts:
        for module in block.modules():
            if isinstance(module, SpatialTransformer):
                yield name, number, module


def install(model: ModelPatcher, injections: Mapping[Layer, Injection]) -> ModelPatcher:
    """A clone of `model` with one adapter in its slots. The given MODEL stays as it is."""
    patched = model.clone()
    ours = patched.get_attachment(WRAPPER_KEY) or {}
    slots = slots_of(patched.model_options.get("transformer_options", {}))
    placed = place(slots, injections, ours)
    for key, patch in placed.items():
        patched.set_model_attn2_replace(patch, *key)
    patched.set_attachments(WRAPPER_KEY, {**ours, **placed})
    if not patched.get_callbacks(CallbacksMP.ON_CLONE, WRAPPER_KEY):
        patched.add_callback_with_key(CallbacksMP.ON_CLONE, WRAPPER_KEY, fork_patches)
    add_wrappers(patched)
    return patched


def with_injections(
    options: Mapping[str, Any], injections: Mapping[Layer, Injection]
) -> dict[str, Any]:
    """Transformer options of one model call, with an adapter on top of what holds the slots."""
    slots = slots_of(options)
    return with_slots(options, {**slots, **place(slots, injections, {})})


def with_recorder(options: Mapping[str, Any], recorder: Recorder) -> dict[str, Any] | None:
    """Transformer options whose image prompts are shown to `recorder`; None if there are none."""
    shown = recorded(slots_of(options), recorder)
    return with_slots(options, shown) if shown else None


def fork_patches(_model: ModelPatcher, clone: ModelPatcher) -> None:
    """ON_CLONE: give the clone patches of its own, so that a pack that stacks onto them
    reaches only the clone."""
    options = clone.model_options["transformer_options"]
    forks: dict[int, AttentionPatch] = {}

    def fork(patch: Any) -> Any:
        if not isinstance(patch, AttentionPatch):
            return patch
        if id(patch) not in forks:
            forks[id(patch)] = patch.fork()
        return forks[id(patch)]

    def forked(patches: Mapping[SlotKey, Any]) -> dict[SlotKey, Any]:
        return {key: fork(patch) for key, patch in patches.items()}

    clone.model_options["transformer_options"] = with_slots(options, forked(slots_of(options)))
    clone.set_attachments(WRAPPER_KEY, forked(clone.get_attachment(WRAPPER_KEY) or {}))
