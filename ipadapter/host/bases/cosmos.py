"""Cosmos-Predict2, and Anima which has its blocks: how they carry image prompts.

Its blocks have no slots. What they attend with is seen by the attention's override, twice per
block: the picture to itself, then to the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from einops import rearrange
from torch import Tensor

from ...adapters.wiring import KEY, KEY_NORM, VALUE, Wiring
from ...bases.cosmos import CROSS, cosmos_layout
from ...bases.layout import Layer, Layout
from ..linear import effective
from .transformer import OVERRIDE, Around, Kind, Learning, Options

_ROWS = "b h l d -> b l (h d)"


def read_cosmos(network: Any) -> Layout | None:
    """The layout of Cosmos-Predict2's network; None for any other."""
    if not isinstance(network, MiniTrainDIT):
        return None
    return cosmos_layout(network.model_channels, network.num_heads, len(network.blocks))


class _Override:
    """An attention override that knows which attention of which block it is."""

    def __init__(
        self, blocks: Mapping[int, Around], before: Callable[..., Tensor] | None, first: int = 0
    ) -> None:
        """blocks: with their terms, by number. first: the block that comes first."""
        self.blocks, self.before, self.calls = blocks, before, 2 * first

    def at(self, block: int) -> _Override:
        """The same for a block that is computed again."""
        return _Override(self.blocks, self.before, block)

    def __call__(
        self,
        attention: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """query, key, value: (rows, heads, length, dim). Returns (rows, length, heads * dim)."""

        def attended(keys: Tensor, values: Tensor) -> Tensor:
            if self.before is None:
                return attention(query, keys, values, *args, **kwargs)
            return self.before(attention, query, keys, values, *args, **kwargs)

        block, crosses = divmod(self.calls, 2)
        self.calls += 1
        around = self.blocks.get(block)
        if around is None or not around.ready.counts():
            return attended(key, value)
        if not crosses:
            if key.shape[2] != query.shape[2]:  # not what the host's blocks do
                around.frame.unseen = around.layer
                self.blocks = {}
            return attended(key, value)
        around.frame.acted = True
        rows = rearrange(query, _ROWS)
        if not around.frame.twice:
            return _added(around, attended(key, value), rows)
        half = key.shape[2] // 2
        halves = ((part[:, :, :half], part[:, :, half:]) for part in (key, value))
        text, nothing = (attended(*pair) for pair in zip(*halves, strict=True))
        both = _added(around, torch.cat([text, nothing]), torch.cat([rows, rows]))
        return both[: len(rows)]


def _added(around: Around, output: Tensor, query: Tensor) -> Tensor:
    output = output if around.frame.fresh else output.clone()
    return around.ready.added_inside(output, query, around.sight(0))


def _around(options: Options, blocks: Sequence[Around]) -> dict[str, Any]:
    """Options of one model call, with the terms in its blocks."""
    if not blocks:
        return dict(options)
    numbered = {around.layer.block.number: around for around in blocks}
    return {**options, OVERRIDE: _Override(numbered, options.get(OVERRIDE))}


def restarted(options: Options, block: int) -> dict[str, Any]:
    """Options for a block that is run by itself."""
    override = options.get(OVERRIDE)
    return (
        {**options, OVERRIDE: override.at(block)}
        if isinstance(override, _Override)
        else {**options}
    )


def _no_slot(_around: Around, _block: Any, _args: Any) -> dict[str, Any]:
    raise TypeError("the blocks of Cosmos have no slots")


def _begin(network: Any, layer: Layer) -> dict[str, Tensor]:
    """The text's own projections, as in a UNet."""
    attention = network.blocks[layer.block.number].cross_attn
    norm = attention.k_norm.weight.detach().float()
    return {
        KEY: effective(attention.k_proj),
        VALUE: effective(attention.v_proj),
        KEY_NORM: norm,
    }


def _text_dim(network: Any) -> int:
    return int(network.blocks[0].cross_attn.context_dim)


COSMOS_KIND = Kind(
    read_cosmos,
    {CROSS: ""},
    _no_slot,
    lambda network: network.patch_spatial,
    Learning(Wiring.NORMED, _text_dim, _text_dim, _begin, joint=False),
    around=_around,
)
