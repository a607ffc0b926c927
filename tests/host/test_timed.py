"""SD3.5's adapter depends on the noise level: its modules are a model that the host loads and
frees, and what they give is made once per noise level and not kept longer."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from support.hosts.scene import Scene, picture
from support.models.transformer_adapters import sd3
from support.models.transformers import TINY_SD3


@pytest.fixture(scope="module")
def scene(host: Any) -> Scene:
    return Scene.of_transformer(host, TINY_SD3, sd3(TINY_SD3))


def modules(model: Any) -> list[Any]:
    return [patcher.model for patcher in model.get_nested_additional_models()]


def loaded(module: Any) -> bool:
    import comfy.model_management

    patchers = [one.model for one in comfy.model_management.current_loaded_models]
    return any(patcher is not None and patcher.model is module for patcher in patchers)


def test_the_host_loads_and_frees_its_modules(scene: Scene) -> None:
    import comfy.model_management

    model = scene.apply()
    assert modules(scene.model) == [] and modules(model) == [scene.adapter.timed]
    before = scene.sample(model)
    assert loaded(scene.adapter.timed)
    comfy.model_management.unload_all_models()
    assert not loaded(scene.adapter.timed)
    assert torch.equal(scene.sample(model), before)


def test_one_adapter_twice_is_one_model(scene: Scene) -> None:
    twice = scene.apply(scene.apply(), image=picture(2))
    assert modules(twice) == modules(twice.clone()) == [scene.adapter.timed]


def test_a_hook_brings_them_as_well(scene: Scene) -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()
    positive = scene.hooked(scene.positive)  # what it carries lives as long as it
    scene.sample(positive=positive)
    assert loaded(scene.adapter.timed)


def test_keys_and_values_are_made_once_per_noise_level_and_only_the_last_are_kept(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = scene.host.module("ipadapter.adapters.timed")
    made, alive, make = [], [], timed.TimedPrompt._project

    def counted(prompt: Any, sigmas: Any) -> Any:
        layers = make(prompt, sigmas)
        gc.collect()
        alive.append(sum(one() is not None for one in made))
        made.extend(weakref.ref(layer) for layer in layers)
        return layers

    monkeypatch.setattr(timed.TimedPrompt, "_project", counted)
    scene.sample(scene.apply(), steps=4)
    depth = TINY_SD3.double
    assert len(made) == 4 * depth  # cond and uncond together
    assert max(alive) <= depth  # those of the level before, until each layer is reached
    gc.collect()
    assert not any(one() is not None for one in made)


def test_other_pictures_of_the_same_adapter_share_its_modules(scene: Scene) -> None:
    one, other = scene.sample(scene.apply()), scene.sample(scene.apply(image=picture(2)))
    assert not torch.equal(one, other)
    assert modules(scene.apply()) == modules(scene.apply(image=picture(2)))


def test_only_the_whole_term_can_be_weighted(scene: Scene) -> None:
    with pytest.raises(ValueError, match=r"embeds_scaling is 'K\+V': .* Choose 'V only'"):
        scene.apply(embeds_scaling="K+V")
