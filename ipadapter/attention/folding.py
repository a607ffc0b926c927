"""Fold weights, scaling rules and swaps into keys and values, once, so that attention
knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor


class Source(str, Enum):
    """Whose tokens a row of a layer receives."""

    IMAGE = "image"
    NEGATIVE = "negative"
    ZERO = "zero"
    SECOND_IMAGE = "second image"


@dataclass(frozen=True)
class LayerRule:
    """What one layer does: the strength, and whose tokens the cond and uncond rows receive."""

    weight: float
    cond: Source = Source.IMAGE
    uncond: Source = Source.NEGATIVE

    def times(self, factor: float) -> LayerRule:
        """The same, stronger or weaker."""
        return replace(self, weight=self.weight * factor)


class EmbedsScaling(str, Enum):
    """What a weight scales. Values are the widget strings of the de facto nodes."""

    V_ONLY = "V only"
    K_AND_V = "K+V"
    K_AND_V_PENALTY = "K+V w/ C penalty"
    K_AND_MEAN_V_PENALTY = "K+mean(V) w/ C penalty"


def normalised_heads(tensor: Tensor, dim: int, eps: float) -> Tensor:
    """(..., width), every `dim` numbers of it scaled to a root mean square of 1."""
    by_head = tensor.unflatten(-1, (-1, dim))
    return (by_head * (by_head.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2)


@dataclass(frozen=True, eq=False)
class KeyValue:
    """Keys and values of one layer: both (items, tokens, width)."""

    key: Tensor
    value: Tensor

    def to(self, device: torch.device) -> KeyValue:
        """The same on another device."""
        return KeyValue(self.key.to(device), self.value.to(device))

    def normalised(self, heads: int, eps: float = 1e-5) -> KeyValue:
        """Every head of every token scaled to a root mean square of 1."""

        dim = self.key.shape[-1] // heads
        return KeyValue(*(normalised_heads(part, dim, eps) for part in (self.key, self.value)))

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in (self.key, self.value))


@dataclass(frozen=True, eq=False)
class Norms:
    """Weights of the norms of queries and keys, one per channel of a head: (dim,)."""

    query: Tensor
    key: Tensor

    def to(self, device: torch.device) -> Norms:
        """The same on a device, in fp32: a part of a model may wait elsewhere."""
        return Norms(*(one.to(device, torch.float32) for one in (self.query, self.key)))


@dataclass(frozen=True, eq=False)
class LayerKeyValue:
    """What the cond and the uncond rows of one layer attend to.

    images: which of the prompt's reference pictures the cond rows see, one after another.
    """

    cond: KeyValue
    uncond: KeyValue
    images: range = range(1)

    @property
    def items(self) -> int:
        """Number of per-latent prompts: 1 serves the whole batch."""
        pairs = (self.cond, self.uncond)
        return max(tensor.shape[0] for pair in pairs for tensor in (pair.key, pair.value))

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the cond and of the uncond rows."""
        return self.cond.key.shape[1], self.uncond.key.shape[1]

    def to(self, device: torch.device) -> LayerKeyValue:
        """The same on another device."""
        cond = self.cond.to(device)
        uncond = cond if self.uncond is self.cond else self.uncond.to(device)
        return replace(self, cond=cond, uncond=uncond)

    def nbytes(self) -> int:
        """Bytes held."""
        return self.cond.nbytes() + (0 if self.uncond is self.cond else self.uncond.nbytes())


_Scale = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _penalised(weight: Tensor, key: Tensor) -> Tensor:
    """Weight scaled down on narrow layers: C / 1280, with C the layer's width (Fooocus); layers of
    transformers are all as wide."""
    return weight * min(key.shape[-1] / 1280.0, 1.0)


def _mean_scaled(key: Tensor, value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    weight, mean = _penalised(weight, key), value.mean(dim=1, keepdim=True)
    # Deviations from the mean cancel out at weight 0, but only up to rounding: they are left out.
    return key * weight, (value - mean) * (weight != 0) + mean * weight


_SCALES: Mapping[EmbedsScaling, _Scale] = {
    EmbedsScaling.V_ONLY: lambda key, value, w: (key, value * w),
    EmbedsScaling.K_AND_V: lambda key, value, w: (key * w, value * w),
    EmbedsScaling.K_AND_V_PENALTY: lambda key, value, w: (
        key * _penalised(w, key),
        value * _penalised(w, key),
    ),
    EmbedsScaling.K_AND_MEAN_V_PENALTY: _mean_scaled,
}


def fold(
    sources: Mapping[Source, KeyValue],
    rules: Sequence[LayerRule],
    scaling: EmbedsScaling,
    dtype: torch.dtype,
) -> LayerKeyValue | None:
    """Keys and values of one layer with everything folded in; None if the layer rests.

    sources: unscaled keys and values of each kind of token, for this layer.
    rules: one rule for all items, or one per item (per-frame weights); they differ in weight only.
    Where items and rules differ in number, the last of the fewer serves the rest.
    """
    if not any(rule.weight for rule in rules):
        return None
    scale = _SCALES[scaling]
    weight = torch.tensor([rule.weight for rule in rules], dtype=torch.float32).view(-1, 1, 1)

    def scaled(source: Source) -> KeyValue:
        if source is Source.ZERO:
            image = sources[Source.IMAGE]
            return KeyValue(
                torch.zeros_like(image.key[:1], dtype=dtype),
                torch.zeros_like(image.value[:1], dtype=dtype),
            )
        pair = sources[source]
        count = max(len(pair.key), len(weight))
        weights = _lengthened(weight, count).to(pair.key.device)
        key, value = scale(_lengthened(pair.key, count), _lengthened(pair.value, count), weights)
        return KeyValue(_narrow(key, dtype), _narrow(value, dtype))

    cond, uncond = (_there(source, sources) for source in (rules[0].cond, rules[0].uncond))
    made = scaled(cond)
    return LayerKeyValue(made, made if uncond is cond else scaled(uncond))


def _there(source: Source, sources: Mapping[Source, KeyValue]) -> Source:
    """The kind of tokens that a prompt without this kind has in its place."""
    return source if source is Source.ZERO or source in sources else Source.IMAGE


def _lengthened(tensor: Tensor, count: int) -> Tensor:
    """Repeat the last item until there are `count`; one item serves all as it is."""
    if len(tensor) in (1, count):
        return tensor
    return torch.cat((tensor, tensor[-1:].expand(count - len(tensor), *tensor.shape[1:])))


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast without overflow: half precision saturates instead of turning infinite."""
    limit = torch.finfo(dtype).max
    return tensor.clamp(-limit, limit).to(dtype) if dtype != tensor.dtype else tensor
