"""What an adapter's layers hold, how they are numbered, and where what they give is added."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from ..attention.folding import normalised_heads
from ..attention.injection import Place
from ..bases.cosmos import CROSS
from ..bases.flux import DOUBLE, SINGLE
from ..bases.layout import PARTS
from ..bases.sd3 import JOINT

KEY, VALUE = "to_k_ip.weight", "to_v_ip.weight"
KEY_BIAS, VALUE_BIAS = "to_k_ip.bias", "to_v_ip.bias"
KEY_NORM = "norm_ip_k.weight"
_NORMS = ("norm_q.weight", "norm_k.weight", KEY_NORM)
_BY_TIME = ("norm_ip.linear.weight", "norm_ip.linear.bias")


@dataclass(frozen=True)
class Wires:
    """A wiring.

    holds: the tensors of a layer. blocks: names of the blocks that the layers belong to, in order.
    place: where their attention is added. by_head: keys and values are normalised head by head.
    by_time: they depend on the noise level. first, step: how the layers are numbered.
    """

    holds: frozenset[str]
    blocks: tuple[str, ...]
    place: Place
    by_head: bool = False
    by_time: bool = False
    first: int = 0
    step: int = 1


class Wiring(Enum):
    """Wirings of published adapters, and of those that are trained here. Those of UNets number
    cross-attentions 1, 3, 5, those of transformers every block from 0."""

    UNET = Wires(frozenset((KEY, VALUE)), PARTS, Place.CROSS, first=1, step=2)
    # https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/transformers/transformer_flux.py#L145
    XLABS = Wires(frozenset((KEY, VALUE, KEY_BIAS, VALUE_BIAS)), (DOUBLE,), Place.AFTER_BLOCK)
    # https://github.com/Shakker-Labs/ComfyUI-IPAdapter-Flux/tree/eef22b6
    INSTANTX = Wires(frozenset((KEY, VALUE)), (DOUBLE, SINGLE), Place.IN_ATTENTION, by_head=True)
    # https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/attention_processor.py#L4872
    JOINED = Wires(
        frozenset((KEY, VALUE, *_NORMS, *_BY_TIME)), (JOINT,), Place.JOINED, by_time=True
    )
    # Ours, for transformers that normalise the keys of each head, so that K' is of the same size:
    # the paper's equation before the attention's projection, and a norm per layer.
    NORMED = Wires(frozenset((KEY, VALUE, KEY_NORM)), (JOINT, CROSS), Place.IN_ATTENTION)

    @classmethod
    def of_transformer(cls, holds: frozenset[str]) -> Wiring | None:
        """The wiring of layers that are numbered from 0 and hold these tensors."""
        known = (one for one in cls if one is not cls.UNET and one.value.holds == holds)
        return next(known, None)


def normed_key(key: Tensor, weight: Tensor | None) -> Tensor:
    """Keys, (..., width), normalised head by head. weight: one factor per channel of a head; None
    where they stay as they are."""
    if weight is None:
        return key
    dim = len(weight)
    return normalised_heads(key, dim, 1e-6) * weight.to(key).repeat(key.shape[-1] // dim)
