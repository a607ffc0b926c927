"""SigLIP's pooling head, which ComfyUI's encoder leaves out: all patches become one embedding."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.ops
import torch
from comfy.clip_model import CLIPMLP
from torch import Tensor, nn
from torch.nn import functional

PREFIX = "vision_model.head."
EPS = 1e-6  # of SigLIP's norms; the host takes CLIP's


class PoolingHead(nn.Module):
    """A learned probe that attends to the patches, and a block after it.

    https://github.com/huggingface/transformers/blob/06053b84c14d72e9789fbf27844a75aa89b3ded7/src/transformers/models/siglip/modeling_siglip.py

    It takes the place of the projection in the host's model, which moves, casts and frees it with
    the rest. The attribute names are the checkpoint's; its one matrix for query, key and value is
    three here, as the host casts whole layers.
    """

    def __init__(self, width: int, inner: int, heads: int) -> None:
        """width: of the patches; inner: of the block."""
        super().__init__()
        cast = comfy.ops.manual_cast
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attention = nn.ModuleDict(
            {name: cast.Linear(width, width) for name in ("query", "key", "value", "out_proj")}
        )
        self.layernorm = cast.LayerNorm(width, eps=EPS)
        self.mlp = CLIPMLP(width, inner, "gelu_pytorch_tanh", None, None, cast)

    @classmethod
    def of(cls, state: Mapping[str, Tensor], heads: int, dtype: torch.dtype) -> PoolingHead:
        """The head in an encoder's file; RuntimeError or KeyError if it is not whole. dtype: in
        which its numbers are kept."""
        own = {
            key.removeprefix(PREFIX): value.to(dtype, copy=True)
            for key, value in state.items()
            if key.startswith(PREFIX)
        }
        inner, width = own["mlp.fc1.weight"].shape
        for kind in ("weight", "bias"):
            parts = own.pop(f"attention.in_proj_{kind}").chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                own[f"attention.{name}.{kind}"] = part
        with torch.device("meta"):
            head = cls(width, inner, heads)
        head.load_state_dict(own, assign=True)
        return head.requires_grad_(False).train(False)

    def forward(self, patches: Tensor) -> Tensor:
        """(images, patches, width), normalised -> (images, width)."""
        probe = comfy.ops.cast_to_input(self.probe, patches).expand(len(patches), -1, -1)
        query = self.attention["query"](probe)
        key, value = (self.attention[name](patches) for name in ("key", "value"))
        split = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        seen = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        seen = self.attention["out_proj"](seen)
        return (seen + self.mlp(self.layernorm(seen)))[:, 0]
