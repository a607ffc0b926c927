"""Gradient checkpointing: blocks are computed again for their gradients, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from comfy.ldm.cosmos.predict2 import Block
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.mmdit import JointBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..bases.cosmos import restarted

_UNET = (BasicTransformerBlock, ResBlock)
_TRANSFORMER = (DoubleStreamBlock, SingleStreamBlock, JointBlock, Block)


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """For a while, a network's blocks keep only what they are given. As the host's own training
    node, by an attribute of the instance; the class, and every other model, is left alone."""
    kinds = (*_UNET, *_TRANSFORMER)
    blocks: list[nn.Module] = [one for one in network.modules() if isinstance(one, kinds)]
    numbers = {block: n for n, block in enumerate(b for b in blocks if isinstance(b, Block))}
    try:
        for block in blocks:
            forward = block.forward
            if isinstance(block, _TRANSFORMER):
                forward = _on_copies(forward, numbers.get(block, 0))
            block.forward = _recomputing(forward)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _on_copies(forward: Callable[..., Any], number: int) -> Callable[..., Any]:
    """A transformer's block, which adds to the rows that it is given in place. number: of a block
    whose attentions are counted."""

    def call(*args: Any, **kwargs: Any) -> Any:
        copied = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        named: dict[str, Any] = {
            name: arg.clone() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()
        }
        if "transformer_options" in named:
            named["transformer_options"] = restarted(named["transformer_options"], number)
        return forward(*copied, **named)

    return call


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        # The UNet writes into its options which block it has come to; the second time, each block
        # must read what was there the first time.
        kept = [dict(arg) if isinstance(arg, dict) else arg for arg in args]
        named: dict[str, Any] = {
            name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()
        }
        return checkpoint(forward, *kept, use_reentrant=False, **named)

    return call
