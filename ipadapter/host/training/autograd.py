"""A loaded network as something that gradients pass through and that does not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn


def differentiable(_attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """An attention override: quantised and chunked kernels have no gradients, torch's own has."""
    return attention_pytorch(*args, **kwargs)


@contextmanager
def trackable(network: nn.Module) -> Iterator[None]:
    """For a while, parameters are plain frozen tensors over the same memory.

    Autograd refuses tensors that were made in inference mode, as a loaded checkpoint's are.
    """
    kept: list[tuple[Any, str, Tensor]] = []
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                plain = type(tensor) in (Tensor, nn.Parameter)
                if tensor is not None and plain and (tensor.is_inference() or tensor.requires_grad):
                    kept.append((table, name, tensor))
    try:
        for table, name, tensor in kept:
            alias = _alias(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            table[name] = nn.Parameter(alias, requires_grad=False) if is_parameter else alias
        yield
    finally:
        for table, name, tensor in kept:
            table[name] = tensor


def _alias(tensor: Tensor) -> Tensor:
    """A tensor that autograd accepts, over the same memory."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    storage = tensor.untyped_storage()
    return alias.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


@contextmanager
def norms_apart(network: nn.Module) -> Iterator[None]:
    """For a while, norms read copies: a transformer's blocks add to their rows in place, after a
    norm has kept them for its gradient."""

    def copied(_norm: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0].clone(), *given[1:])

    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(copied) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
