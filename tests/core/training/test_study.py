"""The warm start on a toy base of two cross-attentions: what it learns, keeps and refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter.adapters.families import Family
from ipadapter.attention.folding import KeyValue
from ipadapter.training.data import Batch, Prompts, TrainingSet
from ipadapter.training.optimiser import StepFailed
from ipadapter.training.recipe import NoiseSchedule, TrainSettings
from ipadapter.training.run import FrozenBase, Outcome, run
from ipadapter.training.state import TrainState
from ipadapter.training.study import Learn, Lesson, Study
from ipadapter.training.trainable import ProjectorPlan, TrainableAdapter
from ipadapter.training.trainer import Trainer, train

EMBED, TOKEN, WIDTHS, HEADS = 12, 16, (8, 16), 2
SETTINGS = TrainSettings(steps=6, batch_size=4, learning_rate=1e-3, seed=5, warm_start=10)
SCHEDULE = NoiseSchedule(torch.linspace(0.03, 14, 1000))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT = [(rand(w, TOKEN, seed=w), rand(w, TOKEN, seed=w + 1)) for w in WIDTHS]
QUERIES = [rand(w, 4, seed=w + 2) for w in WIDTHS]


def samples(count: int = 7) -> TrainingSet:
    """Pictures whose features say what their captions say."""
    said = rand(count, EMBED, seed=1)
    states = (said @ rand(EMBED, 3 * TOKEN, seed=2)).view(count, 3, TOKEN)
    prompts = Prompts(states, rand(1, 3, TOKEN, seed=4))
    return TrainingSet(rand(count, 4, 4, 4, seed=3), said, torch.zeros(1, EMBED), prompts)


def new_adapter() -> TrainableAdapter:
    plan = ProjectorPlan(Family.STANDARD, EMBED, TOKEN)
    return TrainableAdapter.create(plan, TEXT, torch.Generator().manual_seed(0))


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(samples, length, width), head by head."""
    out = []
    for q, k, v in zip(*(t.chunk(HEADS, -1) for t in (query, key, value)), strict=True):
        out.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return torch.cat(out, -1)


def lessons(noisy: Tensor, text: Tensor, empty: Tensor) -> list[Lesson]:
    found = []
    for query_weight, (key, value) in zip(QUERIES, TEXT, strict=True):
        query = noisy.flatten(2).transpose(1, 2) @ query_weight.T
        drawn = [
            softmax_attention(query, words @ key.T, words @ value.T)
            for words in (text, empty.expand(len(text), -1, -1))
        ]
        found.append(Lesson(query, *drawn, HEADS))
    return found


def observe(noisy: Tensor, timesteps: Tensor, batch: Batch, empty: Tensor, learn: Learn) -> None:
    for number, lesson in enumerate(lessons(noisy, batch.text, empty)):
        learn(number, lesson)


def predict(noisy: Tensor, timesteps: Tensor, batch: Batch, images: Sequence[KeyValue]) -> Tensor:
    image = sum((kv.key * kv.value).mean((1, 2)) for kv in images)
    return noisy + (image + batch.text.mean((1, 2))).view(-1, 1, 1, 1)


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
            found = softmax_attention(lesson.query, image.key, image.value)
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
