"""Weight types: which layers of a base act, and how strongly each.

A layer is known to a weight type by its place (part, position, what it carries), never by number,
so the same types serve every base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from ..bases.layout import NO_STYLES, Layout
from ..errors import Problem
from .folding import EmbedsScaling, LayerRule, Source


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


# Larger than any weight that means something, and small enough for half precision.
MOST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Weighting:
    """How strongly an image prompt acts, layer by layer.

    weights: one for all latents, or one per latent (per frame). composition: weight of composition
    layers in the combined types, boost: of the layers that a precise type pushes away from; None:
    the main weight. layers: transformer index -> multiplier ("Mad Scientist"), which replaces the
    weight type's own strengths; layers that it does not name rest.
    """

    weights: tuple[float, ...] = (1.0,)
    kind: WeightType = WeightType.LINEAR
    scaling: EmbedsScaling = EmbedsScaling.V_ONLY
    composition: float | None = None
    boost: float | None = None
    layers: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        """Refuse weights that are no numbers, and those that would end in NaN while sampling."""
        if not self.weights:
            raise Problem.WEIGHTS_TEXT(
                "The list of weights is empty: expected one weight, or one per latent."
            )
        named = [(f"Weight {number}", weight) for number, weight in enumerate(self.weights)]
        named += [(f"Strength of layer {key}", value) for key, value in (self.layers or {}).items()]
        for name, value in named:
            if not math.isfinite(value) or abs(value) > MOST_WEIGHT:
                raise Problem.BAD_VALUE(
                    f"{name} is {value}: expected a finite number, usually 0 to 1.2 and at most "
                    f"{MOST_WEIGHT:g}."
                )

    def rules(self, layout: Layout) -> tuple[tuple[LayerRule, ...], ...]:
        """Per layer of the layout, in adapter order: one rule per weight."""
        # Layer weights go before the type; the precise types keep their swap of cond and uncond.
        kind = self.kind if self.layers is None or self.kind in _PRECISE else WeightType.LINEAR
        if layout.styles is None and kind not in _BY_PLACE:
            others = ", ".join(one.value for one in _BY_PLACE)
            raise Problem.BAD_VALUE(
                f"weight_type is {kind.value!r}: which layers of {layout.name} carry style and "
                f"which composition is not known. Choose {others}, or set layers by number with "
                "IPAdapter Mad Scientist."
            )
        return tuple(
            tuple(self._rule(_RULES[kind], layer.transformer, spot, one) for one in self.weights)
            for layer, spot in zip(layout.layers, _spots(layout), strict=True)
        )

    def _rule(self, rule: _Rule, transformer: int, spot: _Spot, weight: float) -> LayerRule:
        made = rule(spot, self._strengths(weight))
        if self.layers is None:
            return made
        return replace(made, weight=weight * self.layers.get(transformer, 0.0))

    def _strengths(self, weight: float) -> _Strengths:
        composition, boost = self.composition, self.boost
        return _Strengths(
            weight,
            weight if composition is None else composition,
            weight if boost is None else boost,
        )


class _Strengths(NamedTuple):
    """The main weight, that of composition layers, and that of layers pushed away from."""

    weight: float
    layout: float
    push: float


class _Spot(NamedTuple):
    """A layer as a weight type sees it."""

    name: str
    position: float  # t / number of transformers
    style: bool
    composition: float  # 0 where the layer carries no composition


_Rule = Callable[[_Spot, _Strengths], LayerRule]


def _scaled(factor: Callable[[_Spot], float]) -> _Rule:
    return lambda spot, strengths: LayerRule(strengths.weight * factor(spot))


def _ramp(shape: Callable[[float], float]) -> _Rule:
    return _scaled(lambda spot: 0.05 + 0.95 * shape(spot.position))


def _weak(*names: str) -> _Rule:
    return _scaled(lambda spot: 0.2 if spot.name in names else 1.0)


def _swapped(weight: float) -> LayerRule:
    """The image goes to the uncond rows and nothing to the cond rows: guidance then
    pushes away from it."""
    return LayerRule(weight, cond=Source.ZERO, uncond=Source.IMAGE)


def _combined(spot: _Spot, strengths: _Strengths, elsewhere: float) -> LayerRule:
    if spot.composition:
        return LayerRule(strengths.layout * spot.composition, cond=Source.SECOND_IMAGE)
    return LayerRule(strengths.weight if spot.style else elsewhere)


def _style_precise(spot: _Spot, strengths: _Strengths) -> LayerRule:
    if spot.composition:
        return _swapped(strengths.push * spot.composition)
    return LayerRule(strengths.weight if spot.style else 0.0)


def _composition_precise(spot: _Spot, strengths: _Strengths) -> LayerRule:
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


_PRECISE = (WeightType.STYLE_PRECISE, WeightType.COMPOSITION_PRECISE)
# Types that ask where a layer lies, not what it carries: they serve every base.
_BY_PLACE = tuple(_RULES)[: tuple(_RULES).index(WeightType.STYLE)]


def _spots(layout: Layout) -> Iterator[_Spot]:
    """The layers of a layout as weight types see them, in adapter order."""
    styles, count = layout.styles or NO_STYLES, layout.transformers
    for layer in layout.layers:
        where = (layer.block.name, layer.block.number)
        yield _Spot(
            layout.part_of(layer),
            layer.transformer / count,
            where in styles.style,
            styles.composition.get(where, 0.0),
        )
