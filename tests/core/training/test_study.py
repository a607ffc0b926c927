"""The warm start on a toy base of two cross-attentions: what it learns, keeps and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.references.toy_training import (
    WIDTHS,
    attend,
    lessons,
    new_adapter,
    observe,
    predict,
    samples,
)
from torch import Tensor

from ipadapter.training.data import TrainingSet
from ipadapter.training.optimiser import StepFailed
from ipadapter.training.recipe import NoiseSchedule, TrainSettings
from ipadapter.training.run import FrozenBase, Outcome, run
from ipadapter.training.state import TrainState
from ipadapter.training.study import Study
from ipadapter.training.trainer import Trainer, train

SETTINGS = TrainSettings(steps=6, batch_size=4, learning_rate=1e-3, seed=5, warm_start=10)
SCHEDULE = NoiseSchedule(torch.linspace(0.03, 14, 1000))


def study(settings: TrainSettings = SETTINGS, observe: Any = observe) -> Study:
    return Study(new_adapter(), samples(), observe, SCHEDULE, settings)


def whole(
    settings: TrainSettings = SETTINGS,
    stop: int = 1000,
    state: TrainState | None = None,
    data: TrainingSet | None = None,
) -> Outcome:
    """A training that is stopped after `stop` steps of both stages."""
    left = iter(range(1, stop))
    base = FrozenBase(predict, observe, SCHEDULE)
    return run(
        new_adapter(), data or samples(), base, settings, lambda _s: bool(next(left, 0)), state
    )


def same(one: TrainState, two: TrainState) -> bool:
    a, b = one.tensors(), two.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_pictures_learn_what_captions_say() -> None:
    stage = study(replace(SETTINGS, warm_start=300))
    assert train(stage, lambda _step, _error: True) is None
    assert sum(stage.errors[-20:]) < 0.3 * sum(stage.errors[:5]) * 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_steps_gradient_is_that_of_the_plain_formula(accumulation: int) -> None:
    stage, twin = (study(replace(SETTINGS, accumulation=accumulation)) for _ in range(2))
    stage.step()
    adapter, data, total = twin.adapter, samples(), torch.zeros(())
    for _ in range(accumulation):
        draw = twin.draw()
        batch = data.batch(draw.samples, draw.drop_image, draw.drop_text)
        noisy = SCHEDULE.noisy(batch.latents, draw.noise, draw.timesteps)
        for image, lesson in zip(
            adapter(batch.features),
            lessons(noisy, batch.text, data.prompts.empty),
            strict=True,
        ):
            wanted = lesson.text - lesson.nothing
            found = attend(lesson.query, image.key, image.value)
            total = total + (found - wanted).square().mean() / wanted.square().mean()
    total = total / len(WIDTHS) / accumulation
    total.backward()
    assert stage.errors[0] == pytest.approx(float(total.detach()), rel=1e-5)
    for (name, ours), plain in zip(
        stage.adapter.named_parameters(), adapter.parameters(), strict=True
    ):
        assert ours.grad is not None and plain.grad is not None
        assert (ours.grad - plain.grad).norm() < 1e-5 * plain.grad.norm(), name


def test_captions_that_say_nothing_teach_nothing() -> None:
    """No division by the nothing that there is to learn."""
    data = samples()
    silent = replace(data, prompts=replace(data.prompts, states=data.prompts.empty))
    stage = Study(new_adapter(), silent, observe, SCHEDULE, SETTINGS)
    assert stage.gradients(stage.draw()) == [0.0, 0.0]
    assert all(p.grad is None or not p.grad.any() for p in stage.adapter.parameters())


def test_captions_all_alike_are_told_and_leave_the_recipe_as_it_is() -> None:
    data = samples()
    alike = replace(data, prompts=replace(data.prompts, states=data.prompts.states[:1]))
    found, plain = whole(data=alike), whole(replace(SETTINGS, warm_start=0), data=alike)
    assert "captions do not tell the pictures apart" in found.notice and not plain.notice
    assert same(found.state, plain.state)


def test_without_a_warm_start_the_recipe_is_as_before() -> None:
    settings = replace(SETTINGS, warm_start=0)
    trainer = Trainer(new_adapter(), samples(), predict, SCHEDULE, settings)
    train(trainer, lambda _step, _loss: True)
    assert same(whole(settings).state, trainer.state())


def test_the_same_seed_gives_the_same_adapter_and_another_another() -> None:
    first, again, other = whole(), whole(), whole(replace(SETTINGS, seed=6))
    assert same(first.state, again.state) and not same(first.state, other.state)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 4, 10, 11, 15])
def test_stopped_anywhere_and_resumed_it_is_bit_identical(stop: int, average: float) -> None:
    settings = replace(SETTINGS, average=average)
    stopped = whole(settings, stop)
    assert len(stopped.state.studied) + stopped.state.steps == stop
    assert "Stopped after step" in stopped.notice
    kept = TrainState.from_tensors(stopped.state.tensors(), "kept")
    assert same(whole(settings, state=kept).state, whole(settings).state)


def test_nan_stops_it_and_keeps_the_last_good_weights() -> None:
    calls = iter(range(1, 1000))

    def broken(noisy: Tensor, *others: Any) -> None:
        observe(noisy * float("nan") if next(calls) == 4 else noisy, *others)

    good = study(replace(SETTINGS, warm_start=3))
    good.settings = SETTINGS  # so that its rate falls alike
    for _ in range(3):
        good.step()
    stage = study(observe=broken)
    notice = train(stage, lambda _step, _error: True)
    assert notice is not None and "The warm start stopped at step 4" in notice
    assert same(stage.state(), good.state())
    calls = iter([4])
    with pytest.raises(StepFailed, match="step 1"):
        train(study(observe=broken), lambda _step, _error: True)


def test_a_negative_warm_start_is_refused() -> None:
    with pytest.raises(ValueError, match="warm_start is -1"):
        TrainSettings(warm_start=-1)
