"""Products with weights that stay as they are stored; a piece at a time is widened to fp32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

# Numbers widened at a time. On a CPU so few that they are used while they are in its cache, and
# that the allocator hands out the same memory again; a GPU is better served by large pieces.
_PIECE = {"cpu": 1 << 19}
_LARGE = 1 << 25


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear` in the dtype and on the device of `rows`.

    rows: (..., inputs); weight: (outputs, inputs) of any dtype, on any device; bias: (outputs,).
    Returns (..., outputs).
    """
    if weight.dtype == rows.dtype and weight.device == rows.device:
        return functional.linear(rows, weight, bias)
    out = rows.new_empty(*rows.shape[:-1], weight.shape[0])
    for part, piece in pieces(weight, rows.device):
        out[..., part] = functional.linear(rows, piece.to(rows.dtype))
    return out if bias is None else out.add_(bias.to(rows))


def pieces(weight: Tensor, device: torch.device | str) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a weight in pieces, in fp32 on a device, each with the rows that it is."""
    kind, row = torch.device(device).type, max(weight[:1].numel(), 1)
    step = max(_PIECE.get(kind, _LARGE) // row, 1)
    for begin in range(0, weight.shape[0], step):
        part = slice(begin, begin + step)
        yield part, weight[part].to(device).float()


class LayerNorm(nn.LayerNorm):
    """A norm whose weights may be stored in another dtype than it computes in."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        weight, bias = self.weight.to(input), self.bias.to(input)
        return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Linear(nn.Linear):
    """A linear layer whose weights may be stored in another dtype than it computes in."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)"""
        return linear(input, self.weight, self.bias)
