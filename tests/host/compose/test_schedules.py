"""Ranges follow the noise schedule of the MODEL that samples, wherever it was set."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.hosts.compose import Pack, Prompt, Scene, difference, sample, with_reference
from support.hosts.neighbours import Change, node

TOLERANCE = 1e-5


def other_betas(host: Any, scene: Scene) -> Scene:
    """As motion modules do: the same kind of schedule with other betas."""
    model = scene.model.clone()
    sampling = copy.deepcopy(model.get_model_object("model_sampling"))
    sampling._register_schedule(beta_schedule="sqrt_linear", linear_start=0.001, linear_end=0.02)
    model.add_object_patch("model_sampling", sampling)
    return scene.but(model=model)


SCHEDULES: dict[str, Change] = {
    "discrete, zsnr": node("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
    "EDM": node("ModelSamplingContinuousEDM", sampling="eps", sigma_max=120.0, sigma_min=0.002),
    "V": node("ModelSamplingContinuousV", sampling="v_prediction", sigma_max=500.0, sigma_min=0.03),
    "SD3": node("ModelSamplingSD3", shift=3.0),
    "SD3, odd shift": node("ModelSamplingSD3", shift=1.58),
    "AuraFlow": node("ModelSamplingAuraFlow", shift=1.73),
    "other betas": other_betas,
}
RANGES = [(0.0, 0.5), (0.3, 1.0), (0.25, 0.75)]


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Change:
    return SCHEDULES[request.param]


@pytest.mark.parametrize(("start_at", "end_at"), RANGES)
def test_the_order_of_apply_and_schedule_does_not_matter(
    host: Any, scene: Scene, pack: Pack, schedule: Change, start_at: float, end_at: float
) -> None:
    prompt = Prompt(start_at=start_at, end_at=end_at)
    scene = scene.but(steps=4, cfg=1.5)
    changed = schedule(host, scene)
    after = schedule(host, scene.but(model=pack.apply(scene.model, prompt)))
    first, second = sample(changed, pack.apply(changed.model, prompt)), sample(after)
    assert torch.equal(first, second)
    assert difference(first, with_reference(changed, prompt)) < TOLERANCE
    assert not torch.equal(first, sample(changed))


@pytest.mark.parametrize("shift", [1.0, 1.58, 3.0, 6.0])
@pytest.mark.parametrize("scheduler", ["simple", "normal", "sgm_uniform"])
def test_start_0_begins_with_the_first_step(
    host: Any, scene: Scene, pack: Pack, shift: float, scheduler: str
) -> None:
    """Of one step, so that it is that or nothing; the first sigma may be 1.0000001."""
    scene = node("ModelSamplingSD3", shift=shift)(host, scene.but(steps=1, scheduler=scheduler))
    prompted = sample(scene, pack.apply(scene.model, Prompt(end_at=0.9)))
    assert torch.equal(prompted, sample(scene, pack.apply(scene.model, Prompt())))
    assert difference(prompted, sample(scene)) > 1e-3


@pytest.mark.parametrize("shift", [None, 1.0, 3.0])
@pytest.mark.parametrize("parts", [2, 4])
def test_ranges_that_meet_share_no_step_and_leave_none_out(
    host: Any, scene: Scene, pack: Pack, shift: float | None, parts: int
) -> None:
    """sgm_uniform meets k / steps exactly: the parts together are one adapter of the whole run."""
    scene = scene.but(steps=4, cfg=1.5, scheduler="sgm_uniform")
    if shift is not None:
        scene = node("ModelSamplingSD3", shift=shift)(host, scene)
    ends = [part / parts for part in range(parts + 1)]
    spans = [Prompt(start_at=one, end_at=two) for one, two in pairwise(ends)]
    whole = sample(scene, pack.apply(scene.model, Prompt()))
    assert torch.equal(sample(scene, pack.apply(scene.model, *spans)), whole)


def test_hooks_follow_the_schedule_too(host: Any, scene: Scene, pack: Pack) -> None:
    scene, prompt = scene.but(steps=4, cfg=1.5), Prompt(end_at=0.5)
    hooks = pack.hooks(scene.model, prompt)  # made before the schedule changes
    changed = node("ModelSamplingSD3", shift=3.0)(host, scene)
    pair = [
        host.call(
            "ConditioningSetProperties",
            cond_NEW=cond,
            strength=1.0,
            set_cond_area="default",
            hooks=hooks,
        )[0]
        for cond in (changed.positive, changed.negative)
    ]
    hooked = sample(changed.but(positive=pair[0], negative=pair[1]))
    assert difference(hooked, with_reference(changed, prompt)) < TOLERANCE


def test_a_range_of_nothing_is_the_untouched_model(scene: Scene, pack: Pack) -> None:
    for at in (0.0, 0.4, 1.0):
        model = pack.apply(scene.model, Prompt(start_at=at, end_at=at))
        assert torch.equal(sample(scene, model), sample(scene))
