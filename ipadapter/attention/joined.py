"""SD3.5's form of the equation, where the image tokens share a softmax with the picture's own keys.

    Attn(...) + w Attn(Nq(q), [Nk(k); K'], [v; V'])        before projection and gate

q, k, v are the picture's rows in the block, before its norms; Nq and Nk normalise each head, with
weights of the adapter. The block has normalised them already, with weights of its own: what differs
is one factor per channel, and the keys take all of it, so that the queries stay as they are.
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/attention_processor.py#L4872
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .folding import KeyValue, Norms


@dataclass(frozen=True, eq=False)
class Attended:
    """What a block attends with in the picture's rows, (rows, length, width) each, normalised."""

    query: Tensor
    key: Tensor
    value: Tensor

    def rows(self, part: slice) -> Attended:
        """Some of the rows."""
        return Attended(self.query[part], self.key[part], self.value[part])


@dataclass(frozen=True, eq=False)
class Scales:
    """Factors by which an adapter's norms differ from the block's: of the picture's own keys and of
    the image tokens', one per channel of a head."""

    own: Tensor
    image: Tensor

    @classmethod
    def between(cls, adapter: Norms, block: Norms) -> Scales:
        """From the block's norms to the adapter's. A channel that a norm of the block silences
        stays silent."""
        query = torch.where(block.query == 0, 0.0, adapter.query / block.query)
        key = torch.where(block.key == 0, 0.0, adapter.key / block.key)
        return cls(query * key, query)


def joined_attention(given: Attended, pair: KeyValue, scales: Scales, heads: int) -> Tensor:
    """Attn(Nq(q), [Nk(k); K'], [v; V']): (rows, length, width). pair: (groups, tokens, width),
    where `groups` divides rows."""
    rows = given.query.shape[0]

    def keys(own: Tensor, image: Tensor, by: Scales | None) -> Tensor:
        image = image.repeat_interleave(rows // image.shape[0], dim=0)
        if by is not None:
            own, image = _scaled(own, by.own, heads), _scaled(image, by.image, heads)
        return rearrange(torch.cat([own, image], dim=1), "r l (h d) -> r h l d", h=heads)

    query = rearrange(given.query, "r l (h d) -> r h l d", h=heads)
    key, value = keys(given.key, pair.key, scales), keys(given.value, pair.value, None)
    return rearrange(scaled_dot_product_attention(query, key, value), "r h l d -> r l (h d)")


def _scaled(tensor: Tensor, factor: Tensor, heads: int) -> Tensor:
    return tensor * factor.to(tensor).repeat(heads)
