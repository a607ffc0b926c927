"""Weight types as tables: for each layer of SD1.5 and SDXL, how strong, and whose tokens.

The expectations are written by transformer index, as users know them, and not by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from support.models.layouts import FOUR, SD15, SDXL, SSD1B, VEGA, rules_of

from ipadapter.attention.folding import LayerRule, Source
from ipadapter.attention.weight_types import WEIGHT_TYPES, WeightType
from ipadapter.bases.layout import BlockId, Layout
from ipadapter.bases.unet import BASES

W, C, B = 0.8, 0.6, 2.5  # main weight, weight of the composition, boost
EVERY = (W, C, B)
IMAGE, SWAPPED, SECOND = (
    (Source.IMAGE, Source.NEGATIVE),
    (Source.ZERO, Source.IMAGE),
    (Source.SECOND_IMAGE, Source.NEGATIVE),
)
STYLE_15 = (0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15)

Expected = Mapping[int, tuple[float, tuple[Source, Source]]]
Table = Callable[[int], Expected]


def test_adapter_order_of_sd15() -> None:
    blocks = [layer.block for layer in SD15.layers]
    assert blocks[:6] == [BlockId("input", n, 0) for n in (1, 2, 4, 5, 7, 8)]
    assert blocks[6:15] == [BlockId("output", n, 0) for n in range(3, 12)]
    assert blocks[15:] == [BlockId("middle", 0, 0)]
    assert [layer.transformer for layer in SD15.layers] == [*range(6), *range(7, 16), 6]
    assert SD15.transformers == 16


def test_adapter_order_of_sdxl() -> None:
    ids = {layer.block: 2 * n + 1 for n, layer in enumerate(SDXL.layers)}
    assert len(ids) == 70 and SDXL.transformers == 11
    named = {
        BlockId("input", 4, 1): (3, 0),
        BlockId("input", 5, 0): (5, 1),
        BlockId("input", 7, 9): (27, 2),
        BlockId("input", 8, 0): (29, 3),
        BlockId("output", 0, 0): (49, 5),
        BlockId("output", 1, 9): (87, 6),
        BlockId("output", 2, 0): (89, 7),
        BlockId("output", 3, 1): (111, 8),
        BlockId("output", 5, 1): (119, 10),
        BlockId("middle", 0, 0): (121, 4),
        BlockId("middle", 0, 9): (139, 4),
    }
    transformers = {layer.block: layer.transformer for layer in SDXL.layers}
    assert {block: (ids[block], transformers[block]) for block in named} == named


@pytest.mark.parametrize("layout", [SD15, SDXL, SSD1B, VEGA], ids=lambda layout: layout.name)
def test_known_bases_have_these_widths(layout: Layout) -> None:
    assert BASES[layout.name] == (layout.context_dim, widths_of(layout))


def _all(weights: Callable[[int], float], count: int) -> Expected:
    return {t: (weights(t), IMAGE) for t in range(count)}


def _ease(kind: WeightType, count: int) -> Expected:
    half = count / 2
    shapes: dict[WeightType, Callable[[int], float]] = {
        WeightType.EASE_IN: lambda t: 1 - t / count,
        WeightType.EASE_OUT: lambda t: t / count,
        WeightType.EASE_IN_OUT: lambda t: 1 - abs(t - half) / half,
        WeightType.REVERSE_IN_OUT: lambda t: abs(t - half) / half,
    }
    return _all(lambda t: W * (0.05 + 0.95 * shapes[kind](t)), count)


def _weak(parts: tuple[range, ...], count: int) -> Expected:
    return _all(lambda t: W * (0.2 if any(t in part for part in parts) else 1.0), count)


def _expected(kind: WeightType, sdxl: bool) -> Expected:
    """The field's table. Transformers that are absent rest."""
    count, middle = (11, 4) if sdxl else (16, 6)
    inputs, mid, outputs = range(middle), range(middle, middle + 1), range(middle + 1, count)
    if kind is WeightType.LINEAR:
        return _all(lambda t: W, count)
    if kind.value.startswith(("ease", "reverse")):
        return _ease(kind, count)
    parts = {
        WeightType.WEAK_INPUT: (inputs,),
        WeightType.WEAK_OUTPUT: (outputs,),
        WeightType.WEAK_MIDDLE: (mid,),
        WeightType.STRONG_MIDDLE: (inputs, outputs),
    }
    if kind in parts:
        return _weak(parts[kind], count)
    return (_SDXL_STYLES if sdxl else _SD15_STYLES)[kind]


def _each(ts: object, weight: float, sources: tuple[Source, Source] = IMAGE) -> Expected:
    return dict.fromkeys(ts, (weight, sources))  # type: ignore[call-overload]


_NOT_3 = [t for t in range(11) if t != 3]
_NOT_4_5 = [t for t in range(16) if t not in (4, 5)]
_SDXL_STYLES: Mapping[WeightType, Expected] = {
    WeightType.STYLE: _each([6], W),
    WeightType.COMPOSITION: _each([3], W),
    WeightType.STRONG_STYLE: _each(_NOT_3, W),
    WeightType.STYLE_AND_COMPOSITION: {3: (C, SECOND), 6: (W, IMAGE)},
    WeightType.STRONG_STYLE_AND_COMPOSITION: {**_each(_NOT_3, W), 3: (C, SECOND)},
    WeightType.STYLE_PRECISE: {6: (W, IMAGE), 3: (B, SWAPPED)},
    WeightType.COMPOSITION_PRECISE: {
        **_each(_NOT_3, 0.1 * B, SWAPPED),
        3: (W, IMAGE),
        6: (B, SWAPPED),
    },
}
_SD15_STYLES: Mapping[WeightType, Expected] = {
    WeightType.STYLE: _each(STYLE_15, W),
    WeightType.COMPOSITION: {4: (0.25 * W, IMAGE), 5: (W, IMAGE)},
    WeightType.STRONG_STYLE: _each(_NOT_4_5, W),
    WeightType.STYLE_AND_COMPOSITION: {
        **_each(STYLE_15, W),
        4: (0.25 * C, SECOND),
        5: (C, SECOND),
    },
    WeightType.STRONG_STYLE_AND_COMPOSITION: {
        **_each(_NOT_4_5, W),
        **_each([4, 5], C, SECOND),
    },
    WeightType.STYLE_PRECISE: {
        **_each(STYLE_15, W),
        4: (0.25 * B, SWAPPED),
        5: (B, SWAPPED),
    },
    WeightType.COMPOSITION_PRECISE: {
        **_each(STYLE_15, B, SWAPPED),
        **_each([6, 7, 8], 0.1 * B, SWAPPED),
        4: (0.25 * W, IMAGE),
        5: (W, IMAGE),
    },
}


@pytest.mark.parametrize("kind", WeightType, ids=lambda kind: kind.value)
@pytest.mark.parametrize("sdxl", [False, True], ids=["SD1.5", "SDXL"])
def test_weight_types_act_on_these_transformers(kind: WeightType, sdxl: bool) -> None:
    layout = SDXL if sdxl else SD15
    expected = _expected(kind, sdxl)
    rules = rules_of(layout, kind, *EVERY)
    assert len(rules) == len(layout.layers)
    for layer, rule in zip(layout.layers, rules, strict=True):
        weight, sources = expected.get(layer.transformer, (0.0, None))
        assert rule.weight == pytest.approx(weight), (layer.block, layer.transformer)
        if sources is not None:
            assert (rule.cond, rule.uncond) == sources, layer.block


def test_a_precise_type_without_boost_pushes_with_the_main_weight() -> None:
    rules = rules_of(SDXL, WeightType.STYLE_PRECISE, 0.7)
    assert {rule.weight for rule in rules} == {0.0, 0.7}
    assert rules[14] == LayerRule(0.7, Source.ZERO, Source.IMAGE)  # input 8


@pytest.mark.parametrize("kind", list(WeightType))
def test_weight_0_rests_everywhere(kind: WeightType) -> None:
    for layout in (SD15, SDXL, FOUR):
        assert not any(rule.weight for rule in rules_of(layout, kind, 0.0))


def test_factors_replace_the_strengths_of_a_type() -> None:
    factors = {3: 0.5, 6: -1.0}
    rules = rules_of(SDXL, WeightType.EASE_IN, *EVERY, factors)
    for layer, rule in zip(SDXL.layers, rules, strict=True):
        assert rule == LayerRule(W * factors.get(layer.transformer, 0.0))


def test_factors_leave_the_swap_of_a_precise_type() -> None:
    rules = rules_of(SDXL, WeightType.STYLE_PRECISE, *EVERY, {3: 2.0, 6: 1.0})
    acting = {
        layer.transformer: (rule.weight, (rule.cond, rule.uncond))
        for layer, rule in zip(SDXL.layers, rules, strict=True)
        if rule.weight
    }
    assert acting == {3: (2 * W, SWAPPED), 6: (W, IMAGE)}


def test_widget_strings_are_the_fields_own() -> None:
    assert WEIGHT_TYPES == (
        "linear",
        "ease in",
        "ease out",
        "ease in-out",
        "reverse in-out",
        "weak input",
        "weak output",
        "weak middle",
        "strong middle",
        "style transfer",
        "composition",
        "strong style transfer",
        "style and composition",
        "style transfer precise",
        "composition precise",
    )


@pytest.mark.parametrize("layout", [SSD1B, VEGA], ids=lambda layout: layout.name)
def test_pruned_sdxl_has_the_style_blocks_of_sdxl(layout: Layout) -> None:
    assert layout.styles is SDXL.styles
    rules = rules_of(layout, WeightType.STYLE, 1.0)
    acting = {
        layer.block[:2] for layer, rule in zip(layout.layers, rules, strict=True) if rule.weight
    }
    assert acting == {("output", 1)}


def test_a_small_unet_has_its_last_input_as_composition() -> None:
    def acting(kind: WeightType) -> list[tuple[str, int]]:
        rules = rules_of(FOUR, kind, 1.0)
        return [
            layer.block[:2] for layer, rule in zip(FOUR.layers, rules, strict=True) if rule.weight
        ]

    assert acting(WeightType.COMPOSITION) == [("input", 1)]
    assert acting(WeightType.STYLE) == [("output", 0), ("output", 1)]
    assert acting(WeightType.LINEAR) == [layer.block[:2] for layer in FOUR.layers]


@pytest.mark.parametrize("kind", WeightType, ids=lambda kind: kind.value)
@pytest.mark.parametrize("layout", [SSD1B, VEGA, FOUR], ids=lambda layout: layout.name)
def test_every_type_acts_somewhere_on_other_layouts(layout: Layout, kind: WeightType) -> None:
    rules = rules_of(layout, kind, *EVERY)
    assert len(rules) == len(layout.layers) and any(rule.weight for rule in rules)


def widths_of(layout: Layout) -> tuple[int, ...]:
    return tuple(layer.width for layer in layout.layers)


@pytest.mark.parametrize("layout", [SD15, SDXL, SSD1B, VEGA, FOUR], ids=lambda layout: layout.name)
def test_an_adapter_of_the_same_base_fits(layout: Layout) -> None:
    layout.check(widths_of(layout), layout.context_dim, "adapter.bin", layout.name)


@pytest.mark.parametrize(
    ("layout", "other"),
    [(SDXL, SD15), (SD15, SDXL), (SSD1B, SDXL), (VEGA, SSD1B), (FOUR, SD15)],
    ids=lambda layout: layout.name,
)
def test_a_mismatch_names_both_models(layout: Layout, other: Layout) -> None:
    with pytest.raises(ValueError, match=r"my_adapter\.bin does not fit") as caught:
        layout.check(widths_of(other), other.context_dim, "my_adapter.bin", other.name)
    message = str(caught.value)
    assert f"made for {other.name}" in message
    assert f"the MODEL is {layout.name}" in message
    assert f"{len(other.layers)} layers" in message and f"{len(layout.layers)} layers" in message
    assert "Load" in message


def test_sd2_differs_from_sd15_in_the_text_width_alone() -> None:
    with pytest.raises(ValueError, match=r"width 768.*width 1024"):
        Layout(SD15.layers, 1024, "SD2").check(widths_of(SD15), 768, "adapter", "SD1.5")
