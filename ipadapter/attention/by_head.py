"""The image attention on a CPU, head by head: faster than one call where tokens are few."""

from __future__ import annotations

import torch
from torch import Tensor

from .mask import Factor

# Measured on CPUs at every block shape of SD1.5 and SDXL (`tests/bench/run.py attention`): from how
# many queries of a group on, and up to how many tokens and groups, two products per head that
# accumulate into the base beat a second attention call. Many groups are per-latent prompts.
_BY_HEAD = ((4096, 96, 1 << 20), (1024, 32, 1 << 20), (256, 32, 8), (1, 8, 8))
_WIDE = 32  # from so many tokens a softmax along the tokens is faster than one along the queries
_SCORES = 1 << 18  # so many numbers at a time stay in a core's own cache


def is_faster(query: Tensor, ip_key: Tensor, base: Tensor) -> bool:
    """Whether the form by head is the faster one. query: (groups, rows, width)."""
    if query.device.type != "cpu" or not query.dtype == base.dtype == torch.float32:
        return False
    groups, rows, _ = query.shape
    tokens, most = next(limits[1:] for limits in _BY_HEAD if rows >= limits[0])
    return ip_key.shape[1] <= tokens and groups <= most and base.is_contiguous()


def add_(
    base: Tensor, query: Tensor, ip_key: Tensor, ip_value: Tensor, heads: int, factor: Factor
) -> None:
    """Add the image attention to `base` in place, without laying anything out anew.

    Shapes as in `image_attention`. Some queries of one group at a time: their probabilities, then
    one product that accumulates into the base. The mask scales the probabilities, which are far
    fewer numbers than the result.
    """
    groups, rows, width = query.shape
    dim, tokens = width // heads, ip_key.shape[1]
    piece = max(_SCORES // (heads * tokens), 1)

    def by_head(tensor: Tensor) -> Tensor:
        return tensor.view(-1, heads, dim).transpose(0, 1)

    for group in range(groups):
        keys, values = by_head(ip_key[group]) * dim**-0.5, by_head(ip_value[group])
        mask = factor.of(group, groups, rows)
        for begin in range(0, rows, piece):
            part = slice(begin, begin + piece)
            weights = _probabilities(by_head(query[group, part]), keys)
            if mask is not None:
                weights *= mask[part].unsqueeze(1)
            by_head(base[group, part]).baddbmm_(weights, values, alpha=factor.strength)


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    """query: (heads, rows, dim); key: (heads, tokens, dim), scaled. Returns (heads, rows, tokens).

    Few tokens are laid out (heads, tokens, rows), so that the softmax runs along the many rows.
    """
    if key.shape[1] < _WIDE:
        return torch.bmm(key, query.transpose(1, 2)).softmax(dim=1).transpose(1, 2)
    return torch.bmm(query, key.transpose(1, 2)).softmax(dim=2)
