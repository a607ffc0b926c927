"""Nodes for the soak test's server only: what a MODEL carries, and what the process holds.

`SoakBudget` makes the pack's caches small, so that they are full after a few prompts: what grows
from then on is no cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
from collections import Counter
from typing import Any, ClassVar

import torch

CACHES = 2  # of encoded pictures, and of keys and values
COUNTED = ("AttentionPatch", "Injection", "Adapter", "ModelPatcher")


def caches() -> list[Any]:
    """The pack's modules that have a cache, under whatever name the host gave the pack."""
    pack = [module for name, module in list(sys.modules.items()) if ".ipadapter." in name]
    found = [
        module for module in pack if hasattr(module, "TensorCache") and hasattr(module, "_KEPT")
    ]
    if len(found) != CACHES:
        raise RuntimeError(f"expected {CACHES} caches, found {[one.__name__ for one in found]}")
    return found


class SoakBudget:
    """Sets the bytes that each of the pack's caches may hold, before anything is loaded."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "set", "tests", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kilobytes": ("INT", {"default": 1024})}}

    def set(self, kilobytes: int) -> dict[str, Any]:
        for module in caches():
            module._KEPT = kilobytes << 10
        return {"ui": {"text": (json.dumps([module._KEPT for module in caches()]),)}}


class SoakProbe:
    """Reports on the MODEL that just sampled and on the process. `keep` leaks on purpose."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "report", "tests", True
    kept: list[Any] = []  # noqa: RUF012 - for the whole life of the server

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        flag = ("BOOLEAN", {"default": False})
        wires = {"model": ("MODEL",), "images": ("IMAGE",)}
        return {"required": {**wires, "census": flag, "keep": flag}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def report(self, model: Any, images: torch.Tensor, census: bool, keep: bool) -> dict[str, Any]:
        if keep:
            self.kept.append(model)
        del images  # connected so that this node runs after sampling
        told: dict[str, Any] = {"patches": patches(model), "resident": resident()}
        if census:
            gc.collect()
            told["census"] = alive()
            trim()
            told["trimmed"], told["in_use"] = resident(), in_use()
        return {"ui": {"text": (json.dumps(told),)}}


class SoakPictures:
    """Different pictures, so that no cache has one of them."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {"default": 1, "max": 1 << 40})
        return {"required": {"count": number, "seed": number}}

    def make(self, count: int, seed: int) -> tuple[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(count, 64, 64, 3, generator=generator),)


def trim() -> None:
    """Give back what the C library keeps of freed memory, where it can be asked to."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Mallinfo(ctypes.Structure):
    """The C library's `struct mallinfo2`."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def in_use() -> float | None:
    """KB that the program has asked the C library for and not given back, without the gaps
    between them; None where it does not tell."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    ask.restype = Mallinfo
    told = ask()
    return (told.uordblks + told.hblkhd) / 1024


def resident() -> float:
    """KB of memory that this process has in use."""
    import psutil

    return psutil.Process().memory_info().rss / 1024


def patches(model: Any) -> dict[str, int]:
    """Attention slots that are taken, adapters and callbacks in them, wrappers and hooks beside."""
    options = model.model_options.get("transformer_options", {})
    slots = options.get("patches_replace", {}).get("attn2", {})
    chain = [link for patch in slots.values() for link in links(patch)]
    wrappers = {**options.get("wrappers", {}), **model.wrappers}.values()
    callbacks = model.callbacks.values()
    return {
        "slots": len(slots),
        "deep": len(chain),
        "injections": sum(len(getattr(patch, "injections", ())) for patch in chain),
        "stacked": sum(len(getattr(patch, "stacked", ())) for patch in chain),
        "wrappers": sum(len(found) for kind in wrappers for found in kind.values()),
        "callbacks": sum(len(found) for kind in callbacks for found in kind.values()),
    }


def links(patch: Any) -> list[Any]:
    """A slot's patch, and those that it calls in turn."""
    chain = []
    while patch is not None:
        chain.append(patch)
        patch = getattr(patch, "previous", None)
    return chain


def alive() -> dict[str, int]:
    """Objects of the kinds that a leak would be made of, tensors outside the caches and their
    storage, and what the caches hold."""
    counts: Counter[str] = Counter(dict.fromkeys((*COUNTED, "tensors", "cache_kb"), 0))
    storages, kinds = {}, tuple(module.TensorCache for module in caches())
    for item in gc.get_objects():
        name = type(item).__name__
        if name in COUNTED:
            counts[name] += 1
        elif isinstance(item, kinds):
            cached = [tensor for entry in item._entries.values() for tensor in entry]
            counts["tensors"] -= len(cached)
            counts["cache_kb"] += item.nbytes() >> 10
        elif isinstance(item, torch.Tensor):
            counts["tensors"] += 1
            if item.layout is torch.strided and item.device.type == "cpu":
                storage = item.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    counts["tensor_kb"] = sum(storages.values()) >> 10
    return dict(counts)


NODE_CLASS_MAPPINGS = {
    "SoakBudget": SoakBudget,
    "SoakProbe": SoakProbe,
    "SoakPictures": SoakPictures,
}
