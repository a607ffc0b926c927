"""What an adapter's layers hold, how they are numbered, and where what they give is added."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..attention.injection import Place
from ..bases.flux import DOUBLE, SINGLE
from ..bases.layout import PARTS
from ..bases.sd3 import JOINT

KEY, VALUE = "to_k_ip.weight", "to_v_ip.weight"
_BIASES = ("to_k_ip.bias", "to_v_ip.bias")
_NORMS = ("norm_q.weight", "norm_k.weight", "norm_ip_k.weight")
_BY_TIME = ("norm_ip.linear.weight", "norm_ip.linear.bias")


@dataclass(frozen=True)
class Wires:
    """A wiring.

    holds: the tensors of a layer. blocks: names of the blocks that the layers belong to, in order.
    place: where their attention is added. by_head: keys and values are normalised head by head.
    by_time: they depend on the noise level.
    """

    holds: frozenset[str]
    blocks: tuple[str, ...]
    place: Place
    by_head: bool = False
    by_time: bool = False


class Wiring(Enum):
    """Wirings of published adapters. Those of UNets number cross-attentions 1, 3, 5, those of
    transformers every block from 0."""

    UNET = Wires(frozenset((KEY, VALUE)), PARTS, Place.CROSS)
    # https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/transformers/transformer_flux.py#L145
    XLABS = Wires(frozenset((KEY, VALUE, *_BIASES)), (DOUBLE,), Place.AFTER_BLOCK)
    # https://github.com/Shakker-Labs/ComfyUI-IPAdapter-Flux/tree/eef22b6
    INSTANTX = Wires(frozenset((KEY, VALUE)), (DOUBLE, SINGLE), Place.IN_ATTENTION, by_head=True)
    # https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/attention_processor.py#L4872
    JOINED = Wires(
        frozenset((KEY, VALUE, *_NORMS, *_BY_TIME)), (JOINT,), Place.JOINED, by_time=True
    )

    @classmethod
    def of_transformer(cls, holds: frozenset[str]) -> Wiring | None:
        """The wiring of layers that are numbered from 0 and hold these tensors."""
        known = (one for one in cls if one is not cls.UNET and one.value.holds == holds)
        return next(known, None)
