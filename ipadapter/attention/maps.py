"""Where in the picture each reference acted: maps of the image
attention, recorded while sampling."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import Problem
from .injection import Injection
from .mask import block_grid
from .rows import CallState, Extra


class MapKind(str, Enum):
    """What a map shows."""

    EFFECT = "effect"
    ATTENTION = "attention"


def attention_weights(query: Tensor, ip_key: Tensor, heads: int) -> Tensor:
    """Softmax over the image tokens of `q k / sqrt(dim)`: (rows, heads, length, tokens).

    query: (rows, length, heads * dim); ip_key: (rows, tokens, heads * dim).
    """
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, ip_key))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def image_maps(
    query: Tensor, ip_key: Tensor, ip_value: Tensor, heads: int, images: int, kind: MapKind
) -> Tensor:
    """One map per reference picture: (rows, images, length).

    ATTENTION: the share of the softmax that falls on the picture's tokens, averaged over heads; the
    shares of all pictures add up to 1. EFFECT: the length of the vector that the picture adds to
    the result, its weight included.
    """
    weights = attention_weights(query, ip_key, heads).unflatten(-1, (images, -1))
    if kind is MapKind.ATTENTION:
        return weights.sum(-1).mean(1).transpose(1, 2)
    value = ip_value.unflatten(-1, (heads, -1)).transpose(1, 2).unflatten(2, (images, -1))
    added = torch.einsum("bhlit,bhitd->bilhd", weights, value)
    return added.flatten(-2).norm(dim=-1)


@dataclass(eq=False)
class AttentionRecord:
    """Maps of one sampling run, summed over blocks and steps as they come.

    blocks: names of the blocks to record ("input", "middle", "output"). It is refilled by every
    sampling run that uses the MODEL it belongs to.
    """

    kind: MapKind = MapKind.EFFECT
    blocks: Collection[str] = ("input", "middle", "output")
    _sums: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])
    _run: Mapping[Any, Any] | None = None

    def __call__(self, injection: Injection, query: Tensor, extra: Extra, call: CallState) -> None:
        """Record one injection in one block: what it does to the rows of the positive prompt."""
        block = extra.get("block") or ("",)
        rows = call.rows(query.shape[0])
        if block[0] not in self.blocks or not any(rows.is_cond):
            return
        if self._run is not call.prepared:
            self._run = call.prepared
            self._sums.clear()
        maps = self._maps(injection, query, extra, call)
        height, width = block_grid(query.shape[1], extra)
        original = extra.get("original_shape") or (0, 0, height, width)
        grid = functional.interpolate(
            maps.unflatten(-1, (height, width)), size=tuple(original[-2:]), mode="bilinear"
        ).mean(0)
        key = (injection.layer.images, id(injection.mask), injection.span)
        self._sums[key] = self._sums[key] + grid if key in self._sums else grid

    def _maps(self, injection: Injection, query: Tensor, extra: Extra, call: CallState) -> Tensor:
        rows = call.rows(query.shape[0])
        chunk = len(rows.items)
        cond = [
            index * chunk + item
            for index, flag in enumerate(rows.is_cond)
            for item in range(chunk)
            if flag
        ]
        layer = injection.layer_at(call)
        picked = [min(rows.items[row % chunk], injection.items - 1) for row in cond]
        key, value = (
            t[[min(item, len(t) - 1) for item in picked]].to(query.device, torch.float32)
            for t in (layer.cond.key, layer.cond.value)
        )
        maps = image_maps(
            query[cond].float(), key, value, int(extra["n_heads"]), len(layer.images), self.kind
        )
        mask = injection.mask_for(call, query, extra)
        if mask is not None:
            maps = maps * mask.expand(query.shape[0], -1, -1)[cond].transpose(1, 2)
        return maps * abs(injection.strength)

    def maps(self) -> Tensor:
        """(references, height, width) on the latent's grid, each scaled so that its peak is 1.

        References of an adapter that was applied first come first, and its pictures for the
        composition after those for the style. ValueError if nothing was recorded.
        """
        if not self._sums:
            raise Problem.WRONG_INPUT(
                "Nothing was recorded: sample with the MODEL that IPAdapter Record Attention "
                "gives, and connect the picture of that sampling to IPAdapter Attention Map."
            )
        adapters = list(dict.fromkeys(key[1:] for key in self._sums))
        order = sorted(self._sums, key=lambda key: (adapters.index(key[1:]), key[0].start))
        maps = torch.cat([self._sums[key].float().cpu() for key in order])
        return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionRecord:
        """One record, however often the host copies its options."""
        return self


_STOPS = (
    (0.0, 0.0, 0.1),
    (0.35, 0.07, 0.43),
    (0.74, 0.21, 0.33),
    (0.98, 0.55, 0.04),
    (0.99, 1.0, 0.64),
)


def overlay(picture: Tensor, maps: Tensor, strength: float) -> Tensor:
    """Colour maps over a picture: (references, height, width, 3).

    picture: (height, width, 3); maps: (references, h, w), 0..1, on any grid.
    """
    height, width = picture.shape[:2]
    heat = functional.interpolate(maps.unsqueeze(1), (height, width), mode="bicubic").clamp(0, 1)
    stops = torch.tensor(_STOPS)
    place = heat.squeeze(1) * (len(_STOPS) - 1)
    low = place.long().clamp(max=len(_STOPS) - 2)
    colours = torch.lerp(stops[low], stops[low + 1], (place - low).unsqueeze(-1))
    return torch.lerp(picture.expand_as(colours), colours, strength)
