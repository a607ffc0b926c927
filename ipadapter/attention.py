"""The image half of decoupled cross-attention: pure maths on ready keys and values.

`Z = Attn(Q, K, V) + w * Attn(Q, K', V')` (arXiv 2308.06721, eq. 5). The text half is the host's; w
is folded into V' beforehand, so nothing here knows weights.
"""

from __future__ import annotations

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


def add_image_attention(
    base: Tensor,
    query: Tensor,
    ip_key: Tensor,
    ip_value: Tensor,
    heads: int,
    *,
    mask: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Return `base + strength * mask * image_attention(...)`; `base` may be overwritten.

    base, query: (rows, length, width). ip_key, ip_value: (groups, tokens, width), where `groups`
    divides rows and consecutive rows share a group: the queries of a group then count as one long
    row, so that no key or value is copied per row. mask: (rows or 1, length, 1).
    """
    groups = ip_key.shape[0]
    image = image_attention(
        query.reshape(groups, -1, query.shape[-1]), ip_key, ip_value, heads
    ).view_as(base)
    if mask is not None:
        return (
            base.addcmul_(image, mask, value=strength)
            if _writable(base)
            else torch.addcmul(base, image, mask, value=strength)
        )
    return (
        base.add_(image, alpha=strength)
        if _writable(base)
        else torch.add(base, image, alpha=strength)
    )


def _writable(base: Tensor) -> bool:
    return not (torch.is_grad_enabled() and base.requires_grad)
