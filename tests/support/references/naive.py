"""Attention as the paper writes it, one row and one head at a time, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention of one row: query (length, width), key and value (tokens, width)."""
    size = query.shape[-1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = (tensor[:, part].double() for tensor in (query, key, value))
        scores = (q @ k.T) / math.sqrt(size)
        weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
        parts.append((weights / weights.sum(dim=1, keepdim=True)) @ v)
    return torch.cat(parts, dim=1)
