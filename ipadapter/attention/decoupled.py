"""Decoupled cross-attention (IP-Adapter, arXiv 2308.06721, eq. 5), the whole of it.

    Z = Attn(Q, K, V) + w * Attn(Q, K', V')        with K' = c Wk', V' = c Wv'

    Q, Attn(Q, K, V)   the base model's own, untouched     (`base` here; host/slots.py)
    c                  image tokens, the projector's output        (adapters/projectors.py)
    Wk', Wv'           to_k_ip and to_v_ip of the layer            (adapters/key_values.py)
    w                  folded into K' and V' once, before sampling        (folding.py)

The same as the reference's processors:
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/attention_processor.py#L4408
https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/attention_processor.py#L282

Where, when and for which rows the second term is added: mask.py, sigmas.py, rows.py.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch import is_grad_enabled as grad_enabled
from torch.nn.functional import scaled_dot_product_attention

from . import by_head
from .mask import WHOLE, Factor


def image_attention(query: Tensor, ip_key: Tensor, ip_value: Tensor, heads: int) -> Tensor:
    """Attn(Q, K', V'). query: (groups, rows, heads * dim); ip_key, ip_value: (groups, tokens,
    heads * dim); returns query's shape."""
    q, k, v = (rearrange(x, "g l (h d) -> g h l d", h=heads) for x in (query, ip_key, ip_value))
    return rearrange(scaled_dot_product_attention(q, k, v), "g h l d -> g l (h d)")


def add_image_attention(
    base: Tensor,
    query: Tensor,
    ip_key: Tensor,
    ip_value: Tensor,
    heads: int,
    factor: Factor = WHOLE,
) -> Tensor:
    """base + strength * mask * Attn(Q, K', V'); `base` may be overwritten.

    base, query: (rows, length, width). ip_key, ip_value: (groups, tokens, width), where `groups`
    divides rows and consecutive rows share a group: the queries of a group then count as one long
    row, so that no key or value is copied per row.
    """
    grouped = rearrange(query, "(g r) l w -> g (r l) w", g=len(ip_key))
    writable = not any(x.requires_grad for x in (base, query, ip_key, ip_value) if grad_enabled())
    if writable and by_head.is_faster(grouped, ip_key, base):
        by_head.add_(base.view_as(grouped), grouped, ip_key, ip_value, heads, factor)
        return base
    image = image_attention(grouped, ip_key, ip_value, heads).view_as(base)
    if factor.mask is None:
        return (base.add_ if writable else base.add)(image, alpha=factor.strength)
    return (base.addcmul_ if writable else base.addcmul)(image, factor.mask, value=factor.strength)
