"""From an adapter and an image prompt to the keys and values of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ..adapters.adapter import Adapter
from ..adapters.prompt import ImagePrompt
from ..attention.folding import EmbedsScaling, LayerKeyValue, fold
from ..attention.weight_types import LayerRule, Strengths, WeightType, layer_rules
from ..bases.layout import Layer, UNetLayout
from ..errors import Problem

MOST_WEIGHT = 1000.0  # far beyond use, and keys and values still fit half precision


@dataclass(frozen=True)
class Plan:
    """How strongly a prompt acts, layer by layer.

    weights: one for all latents, or one per latent (per frame). factors: transformer index ->
    multiplier, which replaces the weight type's strengths.
    """

    weights: tuple[float, ...] = (1.0,)
    kind: WeightType = WeightType.LINEAR
    scaling: EmbedsScaling = EmbedsScaling.V_ONLY
    composition: float | None = None
    boost: float | None = None
    factors: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        """Refuse weights that are no numbers, and those that would end in NaN while sampling."""
        if not self.weights:
            raise Problem.WEIGHTS_TEXT(
                "The list of weights is empty: expected one weight, or one per latent."
            )
        named = [(f"Weight {number}", weight) for number, weight in enumerate(self.weights)]
        named += [
            (f"Strength of layer {key}", value) for key, value in (self.factors or {}).items()
        ]
        for name, value in named:
            if not math.isfinite(value) or abs(value) > MOST_WEIGHT:
                raise Problem.BAD_VALUE(
                    f"{name} is {value}: expected a finite number, usually 0 to 1.2 and at most "
                    f"{MOST_WEIGHT:g}."
                )

    def rules(self, layout: UNetLayout) -> tuple[tuple[LayerRule, ...], ...]:
        """Per layer: one rule per weight."""
        per_weight = [
            layer_rules(
                layout, self.kind, Strengths(weight, self.composition, self.boost), self.factors
            )
            for weight in self.weights
        ]
        return tuple(zip(*per_weight, strict=True))


def check_fits(adapter: Adapter, layout: UNetLayout) -> None:
    """Raise ValueError if an adapter is made for another base than the layout's."""
    spec = adapter.spec
    layout.check(spec.layer_widths, spec.token_dim, adapter.name, spec.base_name)


def fold_layers(
    adapter: Adapter,
    layout: UNetLayout,
    prompt: ImagePrompt,
    plan: Plan,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Layer, LayerKeyValue]]:
    """Keys and values of every layer that acts, weights folded in; layers of weight 0 are left out.

    device: where to project; dtype: in which the result is kept. Raises ValueError if the adapter
    is made for another base than the layout's.
    """
    check_fits(adapter, layout)
    rules = plan.rules(layout)
    acting = [any(rule.weight for rule in per_weight) for per_weight in rules]
    projected = adapter.key_values(prompt, device, acting)
    for layer, per_weight, acts in zip(layout.layers, rules, acting, strict=True):
        if not acts:
            continue
        folded = fold(next(projected), per_weight, plan.scaling, dtype)
        if folded is not None:
            yield layer, folded
