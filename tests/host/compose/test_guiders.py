"""Samplers and wrappers that name, order or split their conds otherwise than the host does."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.hosts.compose import Pack, Prompt, Scene, difference, sample, with_reference
from support.hosts.neighbours import node
from torch import Tensor

TOLERANCE = 1e-5


def nameless_guider(model: Any, scene: Scene) -> Any:
    """Classifier-free guidance over lists that are not called positive and negative."""
    import comfy.samplers

    class Guider(comfy.samplers.CFGGuider):
        def set_conds(self, first: Any, second: Any) -> None:
            self.inner_set_conds({"first": first, "second": second})

        def predict_noise(
            self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None
        ) -> Tensor:
            conds = [self.conds["first"], self.conds["second"]]
            arguments = (self.inner_model, conds, x, timestep, model_options or {})
            first, second = comfy.samplers.calc_cond_batch(*arguments)
            return second + (first - second) * scene.cfg

    guider = Guider(model)
    guider.set_conds(scene.positive, scene.negative)
    return guider


def test_without_a_list_called_positive_the_hosts_numbers_decide(scene: Scene, pack: Pack) -> None:
    nameless = scene.but(guider=nameless_guider)
    expected = with_reference(scene, Prompt())
    assert difference(sample(nameless, pack.apply(scene.model, Prompt())), expected) < TOLERANCE


def wrapped(model: Any, wrapper: Any) -> Any:
    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def part(c: dict[str, Any], rows: list[int], numbers: list[int]) -> dict[str, Any]:
    """Arguments of some rows; `uuids` stay as they were, as in packs that do not know them."""
    options = {**c["transformer_options"], "cond_or_uncond": numbers}
    return {**c, "c_crossattn": c["c_crossattn"][rows], "transformer_options": options}


def reordered(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
    """The chunks the other way round."""
    x, numbers = arguments["input"], arguments["cond_or_uncond"]
    rows = torch.arange(len(x)).view(len(numbers), -1).flip(0).flatten().tolist()
    c = part(arguments["c"], rows, list(reversed(numbers)))
    out = torch.empty_like(x)
    out[rows] = apply_model(x[rows], arguments["timestep"][rows], **c)
    return out


def split(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
    """One call per chunk."""
    x, numbers = arguments["input"], arguments["cond_or_uncond"]
    out = torch.empty_like(x)
    for chunk, rows in enumerate(torch.arange(len(x)).view(len(numbers), -1).tolist()):
        c = part(arguments["c"], rows, [numbers[chunk]])
        sigmas = arguments["timestep"][rows]
        c["transformer_options"]["sigmas"] = sigmas
        out[rows] = apply_model(x[rows], sigmas, **c)
    return out


@pytest.mark.parametrize("wrapper", [reordered, split])
@pytest.mark.parametrize("guider", [None, nameless_guider], ids=["named", "nameless"])
def test_stale_ids_give_way_to_the_numbers(
    scene: Scene, pack: Pack, wrapper: Any, guider: Any
) -> None:
    scene = scene.but(batch=2)
    prompt = Prompt(items=2)
    expected = with_reference(scene, prompt)
    model = wrapped(pack.apply(scene.model, prompt), wrapper)
    assert difference(sample(scene.but(guider=guider), model), expected) < TOLERANCE


@pytest.mark.parametrize("wrapper", [reordered, split])
def test_stale_ids_of_three_lists(host: Any, scene: Scene, pack: Pack, wrapper: Any) -> None:
    """DualCFG calls the negative number 0."""
    from support.hosts.neighbours import dual_cfg

    scene = dual_cfg(host, scene)
    expected = sample(scene, pack.apply(scene.model, Prompt()))
    got = sample(scene, wrapped(pack.apply(scene.model, Prompt()), wrapper))
    assert difference(got, expected) < TOLERANCE


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0)])
def test_an_empty_prompt_is_none_even_where_the_positive_rests(
    host: Any, scene: Scene, pack: Pack, start: float, end: float
) -> None:
    """PerpNeg evaluates an empty prompt of its own, at steps without the positive too."""
    from support.hosts.compose import conditioning, text

    (positive,) = host.call(
        "ConditioningSetTimestepRange", conditioning=scene.positive, start=start, end=end
    )
    change = node("PerpNeg", empty_conditioning=conditioning(text(6)), neg_scale=1.0)
    scene = change(host, scene.but(positive=positive, steps=4, cfg=1.5))
    expected = with_reference(scene, Prompt())
    assert difference(sample(scene, pack.apply(scene.model, Prompt())), expected) < TOLERANCE


def direct(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
    """A pack that runs the UNet itself, past the model's own call."""
    inner, c = apply_model.__self__, arguments["c"]
    sigma, x = arguments["timestep"], arguments["input"]
    sampling = inner.model_sampling
    scaled = sampling.calculate_input(sigma, x)
    out = inner.diffusion_model(
        scaled,
        sampling.timestep(sigma).float(),
        context=c["c_crossattn"],
        transformer_options=c["transformer_options"],
    )
    return sampling.calculate_denoised(sigma, out, x)


@pytest.mark.parametrize("prompt", [Prompt(), Prompt(end_at=0.5), Prompt(items=2)], ids=repr)
def test_past_the_models_own_call_an_adapter_acts_as_ever(
    scene: Scene, pack: Pack, prompt: Prompt
) -> None:
    scene = scene.but(steps=4, cfg=1.5, batch=2)
    expected = with_reference(scene, prompt)
    got = sample(scene, wrapped(pack.apply(scene.model, prompt), direct))
    assert difference(got, expected) < TOLERANCE


def test_a_hook_that_is_passed_by_says_so_once_per_run(
    host: Any, scene: Scene, pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = pack.hooks(scene.model, Prompt())
    (positive,) = host.call(
        "ConditioningSetProperties",
        cond_NEW=scene.positive,
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    hooked = scene.but(positive=positive)
    with caplog.at_level(logging.WARNING, "ipadapter"):
        sample(hooked)
        assert not caplog.messages
        sample(hooked, wrapped(scene.model, direct))
        assert sum("direct of" in message for message in caplog.messages) == 1
        sample(scene, wrapped(scene.model, direct))  # nobody's hook: nothing to say
        assert len(caplog.messages) == 1
