"""Gradient checkpointing of a UNet: blocks are computed again for their gradients, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(unet: nn.Module) -> Iterator[None]:
    """For a while, a UNet's blocks keep only what they are given. As the host's own training node,
    by an attribute of the instance; the class, and every other model, is left alone."""
    blocks = [
        module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResBlock))
    ]
    try:
        for block in blocks:
            block.forward = _recomputing(block.forward)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        # The UNet writes into its options which block it has come to; the second time, each block
        # must read what was there the first time.
        kept = [dict(arg) if isinstance(arg, dict) else arg for arg in args]
        named = {name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()}
        return checkpoint(forward, *kept, use_reentrant=False, **named)

    return call
