"""From an adapter and a prompt to keys and values: the same as projecting and weighing by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.models.layouts import SD15, SDXL, layout_of, plain, rules_of
from support.models.unets import TINY_SD15, random_adapter
from torch import Tensor

from ipadapter.adapters.adapter import Adapter
from ipadapter.adapters.checkpoint import checkpoint_from_dict
from ipadapter.adapters.prompt import ImagePrompt, concat
from ipadapter.attention.folding import EmbedsScaling, LayerKeyValue, Source
from ipadapter.attention.weight_types import Weighting, WeightType
from ipadapter.bases.layout import Layer, Layout
from ipadapter.bases.unet import unet_layout

DIM = TINY_SD15.context_dim
STATE = random_adapter(TINY_SD15)
ADAPTER = Adapter.from_checkpoint(checkpoint_from_dict(STATE, "tiny.safetensors"))
LAYOUT = unet_layout(
    [
        Layer(layer.block, layer.transformer, width)
        for layer, width in zip(SD15.layers, TINY_SD15.widths, strict=True)
    ],
    DIM,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PROMPT = ImagePrompt(random(1, 4, DIM), random(1, 4, DIM, seed=1))


def folded(
    plan: Weighting, prompt: ImagePrompt = PROMPT, **how: Any
) -> Mapping[Layer, LayerKeyValue]:
    made = dict(ADAPTER.fold(LAYOUT, prompt, plan, **how))
    return {layer: plain(one) for layer, one in made.items()}


def project(number: int, part: str, tokens: Tensor) -> Tensor:
    return tokens @ STATE["ip_adapter"][f"{2 * number + 1}.{part}.weight"].T


def test_keys_and_values_are_the_weighted_projections() -> None:
    layers = folded(Weighting((0.7,)))
    assert list(layers) == list(LAYOUT.layers)
    for number, kv in enumerate(layers.values()):
        for row, tokens in ((kv.cond, PROMPT.cond), (kv.uncond, PROMPT.uncond)):
            assert torch.allclose(row.key, project(number, "to_k_ip", tokens), atol=1e-6)
            assert torch.allclose(row.value, 0.7 * project(number, "to_v_ip", tokens), atol=1e-6)


@pytest.mark.parametrize("kind", WeightType, ids=lambda kind: kind.value)
def test_only_the_layers_that_act_are_there_with_their_weights(kind: WeightType) -> None:
    second = random(1, 4, DIM, seed=2)
    prompt = ImagePrompt(PROMPT.cond, PROMPT.uncond, second)
    layers = folded(Weighting((0.7,), kind, composition=0.4, boost=2.0), prompt)
    tokens = {
        Source.IMAGE: PROMPT.cond,
        Source.NEGATIVE: PROMPT.uncond,
        Source.SECOND_IMAGE: second,
        Source.ZERO: torch.zeros_like(PROMPT.cond),
    }
    rules = rules_of(LAYOUT, kind, 0.7, 0.4, 2.0)
    acting = [layer for layer, rule in zip(LAYOUT.layers, rules, strict=True) if rule.weight]
    assert list(layers) == acting
    for number, (layer, rule) in enumerate(zip(LAYOUT.layers, rules, strict=True)):
        if layer in layers:
            for row, source in (
                (layers[layer].cond, rule.cond),
                (layers[layer].uncond, rule.uncond),
            ):
                value = rule.weight * project(number, "to_v_ip", tokens[source])
                assert torch.allclose(row.value, value, atol=1e-6)


def test_resting_layers_are_not_even_read() -> None:
    read: list[str] = []
    checkpoint = checkpoint_from_dict(STATE, "tiny.safetensors")
    load = checkpoint.ip_adapter._load
    checkpoint.ip_adapter._load = lambda key: (read.append(key), load(key))[1]
    plan = Weighting(kind=WeightType.COMPOSITION)
    list(Adapter.from_checkpoint(checkpoint).fold(LAYOUT, PROMPT, plan))
    assert read == [f"{n}.{part}.weight" for n in (9, 11) for part in ("to_k_ip", "to_v_ip")]


@pytest.mark.parametrize("weights", [(0.0,), (0.0, 0.0, 0.0)])
def test_weight_0_leaves_no_layer(weights: tuple[float, ...]) -> None:
    assert not folded(Weighting(weights))


def test_weights_per_latent_are_folded_one_by_one() -> None:
    weights = (1.0, 0.0, -0.5)
    per_latent = folded(Weighting(weights))
    for item, weight in enumerate(weights):
        alone = folded(Weighting((weight,)))
        for layer, kv in per_latent.items():
            value = alone[layer].cond.value[0] if weight else torch.zeros(4, layer.width)
            assert torch.allclose(kv.cond.value[item], value)


def test_factors_name_the_transformers_that_act() -> None:
    layers = folded(Weighting((2.0,), layers={0: 0.5, 6: 1.0, 99: 1.0}))
    assert [layer.block.name for layer in layers] == ["input", "middle"]
    assert torch.allclose(
        next(iter(layers.values())).cond.value, project(0, "to_v_ip", PROMPT.cond), atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_is_kept_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    exact, kept = folded(Weighting()), folded(Weighting(), dtype=dtype)
    for layer, kv in kept.items():
        assert kv.cond.key.dtype == kv.uncond.value.dtype == dtype
        assert torch.equal(kv.cond.key, exact[layer].cond.key.to(dtype))


def test_several_images_share_one_prompt() -> None:
    three = random(3, 4, DIM, seed=5)
    layers = folded(Weighting(), ImagePrompt(concat(three), PROMPT.uncond))
    for number, kv in enumerate(layers.values()):
        assert kv.cond.key.shape[:2] == (1, 12)
        for image in range(3):
            part = kv.cond.key[0, 4 * image : 4 * image + 4]
            assert torch.allclose(part, project(number, "to_k_ip", three[image]), atol=1e-6)


@pytest.mark.parametrize("scaling", EmbedsScaling, ids=lambda s: s.value)
def test_scaling_reaches_the_layers(scaling: EmbedsScaling) -> None:
    kv = folded(Weighting((0.5,), scaling=scaling))[LAYOUT.layers[0]]
    key = project(0, "to_k_ip", PROMPT.cond)
    factor = {"V only": 1.0, "K+V": 0.5}.get(scaling.value, 0.5 * 32 / 1280)
    assert torch.allclose(kv.cond.key, factor * key, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"Weight 1 is {bad}: expected a finite number"):
        Weighting((1.0, bad))


def test_an_empty_list_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="list of weights is empty"):
        Weighting(())


@pytest.mark.parametrize("base", [SD15, SDXL], ids=lambda layout: layout.name)
def test_an_adapter_of_another_base_is_refused_before_any_work(base: Layout) -> None:
    with pytest.raises(ValueError, match=rf"tiny\.safetensors does not fit.*MODEL is {base.name}"):
        ADAPTER.layers_in(base)


def test_fewer_layers_are_refused() -> None:
    small = layout_of({("input", 1): (32, 1)}, DIM, "one layer")
    with pytest.raises(ValueError, match=r"16 layers of width.*1 layers of width"):
        ADAPTER.layers_in(small)


def test_prompts_that_are_empty_or_mixed_are_refused() -> None:
    with pytest.raises(ValueError, match="empty: connect at least one"):
        ImagePrompt(random(1, 0, DIM), PROMPT.uncond)
    with pytest.raises(ValueError, match=r"64 wide, those of the negative 32"):
        ImagePrompt(PROMPT.cond, random(1, 4, 32))
