"""What nodes give, in a form that can be compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def results(host: Any, node_id: str, wires: dict[str, Any], values: dict[str, Any]) -> Any:
    """A node's results, as far as they can be compared."""
    inputs = host.node(node_id).GET_SCHEMA().inputs
    given = {one.id: wires[one.id] for one in inputs if one.id in wires}
    given |= {
        one.id: one.options[0]
        for one in inputs
        if getattr(one, "options", None) and one.id not in given
    }
    return [plain(result) for result in host.call(node_id, **{**given, **values})]


def plain(result: Any) -> Any:
    if hasattr(result, "model_options"):
        slots = result.model_options["transformer_options"]["patches_replace"]["attn2"]
        injections = [one for slot in slots.values() for one in slot.injections]
        return [(plain(one.layer.cond.value), one.span, one.sigmas) for one in injections]
    if hasattr(result, "hooks"):
        return [
            (plain(one.layer.cond.value), one.span)
            for hook in result.hooks
            for one in hook.injections.values()
        ]
    if hasattr(result, "tensors"):
        return {name: plain(tensor) for name, tensor in result.tensors().items()}, result.weight
    if hasattr(result, "image_size"):
        return result.image_size
    if isinstance(result, Tensor):
        return result.tolist()
    if isinstance(result, (list, tuple)):
        return [plain(one) for one in result]
    if isinstance(result, dict):
        return {name: plain(one) for name, one in result.items()}
    return result
