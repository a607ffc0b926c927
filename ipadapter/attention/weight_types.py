"""Where a UNet attends to text, which adapter layer belongs there, and how strong each layer acts.

The order of an adapter's `to_k_ip` entries is the reference's: every `attn2` of the down path, then
the up path, then the middle (diffusers' `attn_processors`). In ComfyUI's words: input, output,
middle. Nothing is hand-numbered: the layout is read from the loaded UNet, so SD1.5, SD2, SDXL,
SSD-1B, Vega and any UNet of the kind work alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ..bases.layout import UNetLayout
from ..bases.unet import style_layers


class Source(str, Enum):
    """Whose tokens a row of a layer receives."""

    IMAGE = "image"
    NEGATIVE = "negative"
    ZERO = "zero"
    SECOND_IMAGE = "second image"


class WeightType(str, Enum):
    """How a weight spreads over the layers. Values are the widget strings of the de facto nodes."""

    LINEAR = "linear"
    EASE_IN = "ease in"
    EASE_OUT = "ease out"
    EASE_IN_OUT = "ease in-out"
    REVERSE_IN_OUT = "reverse in-out"
    WEAK_INPUT = "weak input"
    WEAK_OUTPUT = "weak output"
    WEAK_MIDDLE = "weak middle"
    STRONG_MIDDLE = "strong middle"
    STYLE = "style transfer"
    COMPOSITION = "composition"
    STRONG_STYLE = "strong style transfer"
    STYLE_AND_COMPOSITION = "style and composition"
    STYLE_PRECISE = "style transfer precise"
    COMPOSITION_PRECISE = "composition precise"
    STRONG_STYLE_AND_COMPOSITION = "strong style and composition"


WEIGHT_TYPES: tuple[str, ...] = tuple(
    kind.value for kind in WeightType if kind is not WeightType.STRONG_STYLE_AND_COMPOSITION
)


@dataclass(frozen=True)
class LayerRule:
    """What one layer does: the strength, and whose tokens the cond and uncond rows receive."""

    weight: float
    cond: Source = Source.IMAGE
    uncond: Source = Source.NEGATIVE


@dataclass(frozen=True)
class Strengths:
    """The numbers of an Apply node.

    weight: the main weight. composition: weight of composition layers in the combined types. boost:
    weight of the layers that a precise type pushes away from. `None` means the main weight.
    """

    weight: float = 1.0
    composition: float | None = None
    boost: float | None = None

    @property
    def layout(self) -> float:
        """Strength of composition layers in a combined type."""
        return self.weight if self.composition is None else self.composition

    @property
    def push(self) -> float:
        """Strength of the swapped layers in a precise type."""
        return self.weight if self.boost is None else self.boost


class _Spot(NamedTuple):
    """A layer as a weight type sees it."""

    name: str
    position: float  # t / number of transformers
    style: bool
    composition: float  # 0 where the layer carries no composition


_Rule = Callable[[_Spot, Strengths], LayerRule]


def _scaled(factor: Callable[[_Spot], float]) -> _Rule:
    return lambda spot, strengths: LayerRule(strengths.weight * factor(spot))


def _ramp(shape: Callable[[float], float]) -> _Rule:
    return _scaled(lambda spot: 0.05 + 0.95 * shape(spot.position))


def _weak(*names: str) -> _Rule:
    return _scaled(lambda spot: 0.2 if spot.name in names else 1.0)


def _swapped(weight: float) -> LayerRule:
    """The image goes to the uncond rows and nothing to the cond rows: guidance then pushes away
    from it."""
    return LayerRule(weight, cond=Source.ZERO, uncond=Source.IMAGE)


def _combined(spot: _Spot, strengths: Strengths, elsewhere: float) -> LayerRule:
    if spot.composition:
        return LayerRule(strengths.layout * spot.composition, cond=Source.SECOND_IMAGE)
    return LayerRule(strengths.weight if spot.style else elsewhere)


def _style_precise(spot: _Spot, strengths: Strengths) -> LayerRule:
    if spot.composition:
        return _swapped(strengths.push * spot.composition)
    return LayerRule(strengths.weight if spot.style else 0.0)


def _composition_precise(spot: _Spot, strengths: Strengths) -> LayerRule:
    if spot.composition:
        return LayerRule(strengths.weight * spot.composition)
    return _swapped(strengths.push if spot.style else 0.1 * strengths.push)


_RULES: Mapping[WeightType, _Rule] = {
    WeightType.LINEAR: _scaled(lambda _spot: 1.0),
    WeightType.EASE_IN: _ramp(lambda t: 1.0 - t),
    WeightType.EASE_OUT: _ramp(lambda t: t),
    WeightType.EASE_IN_OUT: _ramp(lambda t: 1.0 - abs(t - 0.5) * 2.0),
    WeightType.REVERSE_IN_OUT: _ramp(lambda t: abs(t - 0.5) * 2.0),
    WeightType.WEAK_INPUT: _weak("input"),
    WeightType.WEAK_OUTPUT: _weak("output"),
    WeightType.WEAK_MIDDLE: _weak("middle"),
    WeightType.STRONG_MIDDLE: _weak("input", "output"),
    WeightType.STYLE: _scaled(lambda spot: 1.0 if spot.style else 0.0),
    WeightType.COMPOSITION: _scaled(lambda spot: spot.composition),
    WeightType.STRONG_STYLE: _scaled(lambda spot: 0.0 if spot.composition else 1.0),
    WeightType.STYLE_AND_COMPOSITION: lambda spot, s: _combined(spot, s, elsewhere=0.0),
    WeightType.STRONG_STYLE_AND_COMPOSITION: lambda spot, s: _combined(
        spot._replace(composition=1.0 if spot.composition else 0.0), s, elsewhere=s.weight
    ),
    WeightType.STYLE_PRECISE: _style_precise,
    WeightType.COMPOSITION_PRECISE: _composition_precise,
}


def layer_rules(
    layout: UNetLayout,
    kind: WeightType,
    strengths: Strengths,
    factors: Mapping[int, float] | None = None,
) -> tuple[LayerRule, ...]:
    """What each layer of a layout does, in adapter order.

    factors: transformer index -> multiplier ("Mad Scientist"); it replaces the weight type's own
    strengths, layers that it does not name rest. The precise types keep their swap of cond and
    uncond.
    """
    styles, count = style_layers(layout), layout.transformers
    rules = []
    for layer in layout.layers:
        where = (layer.block.name, layer.block.number)
        spot = _Spot(
            layer.block.name,
            layer.transformer / count,
            where in styles.style,
            styles.composition.get(where, 0.0),
        )
        rule = _RULES[kind](spot, strengths)
        if factors is not None:
            rule = LayerRule(
                strengths.weight * factors.get(layer.transformer, 0.0), rule.cond, rule.uncond
            )
        rules.append(rule)
    return tuple(rules)
