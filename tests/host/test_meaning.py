"""What image prompts do to pictures, on the demo models: numbers that a broken adapter fails.

Distances are on a scale of 0 to 2 (channels from -1 to 1), overlaps from 0 to 1.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.models.demoset import FEW, SHOWN, Demo, load_demo
from torch import Tensor

FAMILIES = ("standard", "Plus")


class Runs:
    """Samples, each made once; and the printed figures."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.made: dict[str, Tensor] = {}

    def image_only(self, family: str, weight: float = 1.0) -> Tensor:
        """One picture per entry of SHOWN at weight 1, else of the first FEW."""
        adapter, shown = self.demo.adapter(family), self._shown(weight)
        return self._kept(f"{family} {weight}", adapter, shown, weight)

    def shuffled(self, family: str) -> Tensor:
        return self._kept(f"{family} shuffled", self.demo.shuffled(family), len(SHOWN))

    @cached_property
    def nothing(self) -> Tensor:
        return self.demo.sample(count=len(SHOWN))

    def _shown(self, weight: float) -> int:
        return len(SHOWN) if weight == 1 else FEW

    def _kept(self, name: str, adapter: Any, count: int, weight: float = 1.0) -> Tensor:
        if name not in self.made:
            model = self.demo.applied(adapter, self.demo.references[:count], weight=weight)
            self.made[name] = self.demo.sample(model, count=count)
            print(f"\n{name}: {self.demo.figures(self.made[name])}", end="")
        return self.made[name]


@pytest.fixture(scope="module")
def runs(host: Any) -> Runs:
    return Runs(load_demo(host))


@pytest.mark.parametrize("family", FAMILIES)
def test_colours_follow_the_reference(runs: Runs, family: str) -> None:
    found, without = runs.demo.figures(runs.image_only(family)), runs.demo.figures(runs.nothing)
    assert found["background"] < 0.2 and found["background"] < 0.4 * without["background"]
    assert found["object"] < 0.3 and found["object"] < 0.5 * without["object"]


@pytest.mark.parametrize("family", FAMILIES)
def test_shuffled_keys_and_values_follow_nothing(runs: Runs, family: str) -> None:
    found, without = runs.demo.figures(runs.shuffled(family)), runs.demo.figures(runs.nothing)
    assert found["background"] > 0.35 and found["background"] > 0.9 * without["background"]
    assert found["object"] > 0.5 and found["object"] > 0.85 * without["object"]


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_follow_the_reference(runs: Runs, family: str) -> None:
    found = runs.demo.figures(runs.image_only(family))
    others = [runs.demo.figures(images) for images in (runs.shuffled(family), runs.nothing)]
    print(f"\nnothing: {others[1]}", end="")
    assert found["shapes"] >= 0.5 and max(one["shapes"] for one in others) <= 0.25
    assert found["overlap"] > max(one["overlap"] for one in others) + 0.1


@pytest.mark.slow
def test_captions_say_the_shape(runs: Runs) -> None:
    demo = runs.demo
    shares = [
        demo.shapes_recognised(
            demo.sample(caption=f"a {colour} {shape} on a {background} background"),
            [(shape, colour, background)] * FEW,
        )
        for shape, colour, background in SHOWN
    ]
    found = sum(shares) / len(shares)
    print(f"\ncaptions: shapes recognised {found} ({shares})", end="")
    assert found >= 0.4


def test_text_and_image_both_steer(runs: Runs) -> None:
    demo, to = runs.demo, runs.demo.references[:FEW].movedim(-1, 1)
    caption = "a blue star on a green background"
    text, image = demo.sample(caption=caption), runs.image_only("standard", 0.8)
    both = demo.sample(demo.applied(demo.adapter("standard"), weight=0.8), caption)
    assert apart(both, text) < 0.8 * apart(image, text)
    assert apart(both, image) < 0.9 * apart(text, image)
    assert demo.background_distance(both, to) < 0.9 * demo.background_distance(text, to)


def apart(one: Tensor, two: Tensor) -> float:
    """Mean difference of two batches made from the same noise."""
    return float((one - two).abs().mean() * 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_moves_the_output_steadily(runs: Runs, family: str) -> None:
    made = [runs.nothing, runs.image_only(family, 0.4), runs.image_only(family)]
    distances = [runs.demo.figures(images[:FEW])["background"] for images in made]
    assert all(later < earlier - 0.02 for earlier, later in pairwise(distances))


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_zero_is_the_plain_model_bit_for_bit(runs: Runs, family: str) -> None:
    demo = runs.demo
    model = demo.applied(demo.adapter(family), demo.references[:2], weight=0.0)
    assert torch.equal(demo.sample(model, count=2, steps=2), demo.sample(count=2, steps=2))


def test_mask_confines_the_effect(runs: Runs) -> None:
    demo, half = runs.demo, torch.zeros(1, 128, 128)
    half[:, :, :64] = 1.0
    masked = demo.sample(demo.applied(demo.adapter("standard"), attn_mask=half))
    to = demo.references[:FEW].movedim(-1, 1)
    inside = edge_distance(masked, to, slice(0, 12))
    outside = edge_distance(masked, to, slice(-12, None))
    assert inside < 0.85 * outside


def test_the_map_of_a_masked_prompt_lies_where_the_mask_is(runs: Runs) -> None:
    demo, half = runs.demo, torch.zeros(1, 128, 128)
    half[:, :, :64] = 1.0
    masked = demo.applied(demo.adapter("standard"), demo.references[:1], attn_mask=half)
    recording, record = demo.host.call(
        "IPAdapterRecordAttention", model=masked, show="effect", blocks="all"
    )
    demo.sample(recording, count=1, steps=2)
    _, (heat,) = demo.host.call(
        "IPAdapterAttentionMap", record=record, image=demo.references[:1], opacity=0.5
    )
    assert heat[:, : heat.shape[1] // 2].sum() > 0.9 * heat.sum()


def edge_distance(images: Tensor, to: Tensor, columns: slice) -> float:
    """Mean colour difference to the references along the left or right edge."""
    return float((images - to)[..., columns].mean((2, 3)).abs().mean() * 2)


def test_negative_image_moves_away(runs: Runs) -> None:
    demo = runs.demo
    adapter, caption = demo.adapter("standard"), "a red circle"
    yellow = demo.references[:1] * 0 + torch.tensor((0.98, 0.90, 0.18))
    plain = demo.sample(demo.applied(adapter, weight=0.6), caption)
    away = demo.sample(demo.applied(adapter, weight=0.6, image_negative=yellow), caption)
    distances = [sum(demo.far(one, "yellow") for one in images) / FEW for images in (plain, away)]
    assert distances[1] > distances[0] + 0.02
