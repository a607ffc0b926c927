"""SD3.5's form of the equation, where the image tokens share a softmax with the picture's own keys.

    Attn(...) + w Attn(Nq(q), [Nk(k); K'], [v; V'])        before projection and gate

q, k, v are the picture's rows in the block, before its norms; Nq and Nk normalise each head, with
weights of the adapter. The block has normalised them already, with weights of its own: what differs
is one factor per channel, and the keys take all of it, so that the queries stay as they are.
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/attention_processor.py#L4872
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.functional import scaled_dot_product_attention

from .folding import Norms
from .injection import Injection


class Attended(NamedTuple):
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


class JoinedTerm(NamedTuple):
    """One injection, ready for the picture's rows of one block in one model call.

    parts: rows, keys and values of the image tokens, (rows, tokens, width) each, scaled. own: scale
    of the picture's own keys, (width,). mask: of the whole term, weights of single latents
    included, (1 or rows, positions, 1); None without either. reach: positions where it is not zero
    in every row, None where they are most. acts, strength, gate: as those of a Term.
    """

    injection: Injection
    parts: tuple[tuple[slice, Tensor, Tensor], ...]
    own: Tensor
    mask: Tensor | None
    reach: Tensor | None
    acts: bool
    strength: float
    gate: Tensor

    @property
    def counts(self) -> bool:
        """Whether the term has to be computed. A second attention over the whole picture is too
        much for a closed gate, so ranges are a matter of the graph here."""
        return self.acts

    def add_(self, base: Tensor, given: Attended, heads: int) -> None:
        """Add the term to `base`, the picture's rows, in place. base: (rows, length, width)."""
        for part, key, value in self.parts:
            mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[part]
            rows = given.rows(part)
            if is_compiling():  # how many positions a mask lets act is no matter of the graph
                term = joined_attention(rows, self.own, key, value, heads) * self.gate
                base[part].add_(term if mask is None else term * mask)
            elif mask is None or self.reach is None:
                term = joined_attention(rows, self.own, key, value, heads)
                base[part].add_(term if mask is None else term * mask, alpha=self.strength)
            elif len(self.reach):
                rows = rows._replace(query=rows.query[:, self.reach])
                term = joined_attention(rows, self.own, key, value, heads) * mask[:, self.reach]
                base[part].index_add_(1, self.reach, term, alpha=self.strength)


def joined_attention(
    given: Attended, own: Tensor, ip_key: Tensor, ip_value: Tensor, heads: int
) -> Tensor:
    """Attn(Nq(q), [Nk(k); K'], [v; V']): (rows, length, width). own: what scales the picture's own
    keys, (width,). ip_key, ip_value: (rows, tokens, width), scaled."""
    key, value = torch.cat([given.key * own, ip_key], 1), torch.cat([given.value, ip_value], 1)
    query, key, value = (
        rearrange(part, "r l (h d) -> r h l d", h=heads) for part in (given.query, key, value)
    )
    return rearrange(scaled_dot_product_attention(query, key, value), "r h l d -> r l (h d)")
