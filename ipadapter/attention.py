"""The image half of decoupled cross-attention: pure maths on ready keys and values.

`Z = Attn(Q, K, V) + w * Attn(Q, K', V')` (arXiv 2308.06721, eq. 5). The text half is the host's; w
is folded into V' beforehand, so nothing here knows weights.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def image_attention(query: Tensor, ip_key: Tensor, ip_value: Tensor, heads: int) -> Tensor:
    """Softmax attention of the queries over the image tokens.

    query: (groups, rows, heads * dim); ip_key, ip_value: (groups, tokens, heads * dim). Returns
    query's shape.
    """
    groups, rows, width = query.shape

    def split(tensor: Tensor) -> Tensor:
        return tensor.view(groups, -1, heads, width // heads).transpose(1, 2)

    out = functional.scaled_dot_product_attention(split(query), split(ip_key), split(ip_value))
    return out.transpose(1, 2).reshape(groups, rows, width)


class Factor(NamedTuple):
    """What scales the image attention: mask (rows or 1, length, 1) or None, and a number."""

    mask: Tensor | None = None
    strength: float = 1.0

    def of(self, group: int, groups: int, rows: int) -> Tensor | None:
        """The mask of one group's queries: (rows of the group,)."""
        if self.mask is None:
            return None
        flat = self.mask.reshape(self.mask.shape[0], -1)
        if len(flat) == 1:
            return flat[0].repeat(rows // flat.shape[1])
        return flat.reshape(groups, -1)[group]


WHOLE = Factor()  # all of it, everywhere


def add_image_attention(
    base: Tensor,
    query: Tensor,
    ip_key: Tensor,
    ip_value: Tensor,
    heads: int,
    factor: Factor = WHOLE,
) -> Tensor:
    """Return `base + strength * mask * image_attention(...)`; `base` may be overwritten.

    base, query: (rows, length, width). ip_key, ip_value: (groups, tokens, width), where `groups`
    divides rows and consecutive rows share a group: the queries of a group then count as one long
    row, so that no key or value is copied per row. factor: mask and strength.
    """
    groups, writable = ip_key.shape[0], _writable(base, query, ip_key, ip_value)
    grouped = query.reshape(groups, -1, query.shape[-1])
    if writable and _few_tokens(grouped, ip_key, base):
        _add_by_head(base.view_as(grouped), grouped, ip_key, ip_value, heads, factor)
        return base
    image = image_attention(grouped, ip_key, ip_value, heads).view_as(base)
    if factor.mask is not None:
        add = base.addcmul_ if writable else partial(torch.addcmul, base)
        return add(image, factor.mask, value=factor.strength)
    return (base.add_ if writable else partial(torch.add, base))(image, alpha=factor.strength)


# Measured on CPUs at every block shape of SD1.5 and SDXL (`tests/bench/run.py attention`): from how
# many queries of a group on, and up to how many tokens and groups, two products per head that
# accumulate into the base beat a second attention call. Many groups are per-latent prompts.
_BY_HEAD = ((4096, 96, 1 << 20), (1024, 32, 1 << 20), (256, 32, 8), (1, 8, 8))
_WIDE = 32  # from so many tokens a softmax along the tokens is faster than one along the queries
_SCORES = 1 << 18  # so many numbers at a time stay in a core's own cache


def _few_tokens(query: Tensor, ip_key: Tensor, base: Tensor) -> bool:
    """Whether the form by head is the faster one. query: (groups, rows, width)."""
    if query.device.type != "cpu" or not query.dtype == base.dtype == torch.float32:
        return False
    groups, rows, _ = query.shape
    tokens, most = next(limits[1:] for limits in _BY_HEAD if rows >= limits[0])
    return ip_key.shape[1] <= tokens and groups <= most and base.is_contiguous()


def _add_by_head(
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


def _writable(*tensors: Tensor) -> bool:
    """True unless gradients are recorded, which need what would be overwritten."""
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
