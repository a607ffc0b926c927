"""Which saved adapters other programs cannot read, though their layout is the official one."""

from __future__ import annotations

import re

from ..adapters.families import Family
from ..adapters.wiring import Wiring
from ..files.tensors import Shapes

# What diffusers takes for granted instead of reading it from the file, and many a pack with it:
# https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/loaders/unet.py#L379
_TOKENS = {
    Family.STANDARD: (4,),
    Family.FACEID_PLUS: (4,),
    Family.FACEID_PLUS_V2: (4,),
    Family.KOLORS_FACEID_PLUS: (4,),
    # https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/loaders/transformer_flux.py#L37
    Family.FLUX_XLABS: (4, 16),
}
_DEPTH = 4
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def portability_note(family: Family, num_tokens: int, projector: Shapes | None = None) -> str:
    """Why diffusers cannot read an adapter; empty if it can. projector: shapes, where known."""
    if family.row.wiring is Wiring.NORMED:
        return (
            "Only this pack reads it: there is no common layout of adapters for this base that do "
            "not depend on the noise level."
        )
    tokens = _TOKENS.get(family, (num_tokens,))
    if num_tokens not in tokens:
        expected = " or ".join(map(str, tokens))
        return (
            f"diffusers cannot read it: it expects {expected} tokens of {family.value} adapters, "
            f"this one has {num_tokens}. This pack reads it; other programs may not."
        )
    depth = len({match[1] for key in projector or () if (match := _LAYER.search(key))})
    if depth not in (0, _DEPTH):
        return (
            f"diffusers cannot read it: it expects a resampler of {_DEPTH} layers, this one has "
            f"{depth}. This pack reads it; other programs may not."
        )
    return ""
