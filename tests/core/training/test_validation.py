"""Pictures that are held out: never trained on, judged on the same draws, changing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ipadapter.adapters.families import Family
from ipadapter.attention.folding import KeyValue
from ipadapter.training.curve import loss_curve
from ipadapter.training.data import Batch, Prompts, Samples, TrainingSet, split
from ipadapter.training.recipe import NoiseSchedule, TrainSettings
from ipadapter.training.run import FrozenBase, run
from ipadapter.training.state import TrainState
from ipadapter.training.trainable import ProjectorPlan, TrainableAdapter
from ipadapter.training.trainer import Trainer, train
from ipadapter.training.validation import EVERY

COUNT, SCHEDULE = 20, NoiseSchedule(torch.linspace(0.03, 14, 1000))
SETTINGS = TrainSettings(steps=EVERY + 3, batch_size=3, learning_rate=1e-2, seed=5, held_out=0.2)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def samples() -> TrainingSet:
    prompts = Prompts(rand(COUNT, 6, 16, seed=2), torch.zeros(1, 6, 16))
    latents = torch.arange(COUNT).view(-1, 1, 1, 1) + rand(COUNT, 4, 4, 4, seed=3)
    return TrainingSet(latents, rand(COUNT, 12, seed=1), torch.zeros(1, 12), prompts)


def new_adapter() -> TrainableAdapter:
    text = [(rand(w, 16, seed=w), rand(w, 16, seed=w + 1)) for w in (8, 16)]
    plan = ProjectorPlan(Family.STANDARD, 12, 16)
    return TrainableAdapter.create(plan, text, torch.Generator().manual_seed(0))


def predict(noisy: Tensor, steps: Tensor, batch: Batch, images: Sequence[KeyValue]) -> Tensor:
    image = sum((kv.key * kv.value).mean((1, 2)) for kv in images)
    return noisy + (image + batch.text.mean((1, 2))).view(-1, 1, 1, 1)


def trained(held_out: Samples | None, part: Samples) -> Trainer:
    stage = Trainer(new_adapter(), part, predict, SCHEDULE, SETTINGS, held_out)
    train(stage, lambda _step, _loss: True)
    return stage


def test_a_share_is_held_out_and_never_trained_on() -> None:
    part, held_out = split(samples(), 0.2)
    assert held_out is not None and (len(part), len(held_out)) == (16, 4)
    nobody = torch.zeros(16, dtype=torch.bool)
    seen = part.batch(torch.arange(16), nobody, nobody).latents
    unseen = held_out.batch(torch.arange(4), nobody[:4], nobody[:4]).latents
    both = torch.cat((seen, unseen)).mean((1, 2, 3)).argsort()
    assert sorted(both.tolist()) == list(range(COUNT))
    whole = torch.cat((seen, unseen))[both]
    assert torch.equal(whole, samples().latents[samples().latents.mean((1, 2, 3)).argsort()])
    again, _ = split(samples(), 0.2)
    assert torch.equal(again.batch(torch.arange(16), nobody, nobody).latents, seen)


def test_too_few_pictures_hold_none_out() -> None:
    data = samples()
    assert split(data, 0.04) == (data, None) == split(data, 0.0)


def test_judging_changes_nothing_and_compares_on_the_same_draws() -> None:
    part, held_out = split(samples(), 0.2)
    judged, plain = trained(held_out, part), trained(None, part)
    ours, theirs = judged.state(), plain.state()
    assert all(torch.equal(ours.weights[key], theirs.weights[key]) for key in theirs.weights)
    assert judged.losses == plain.losses and not plain.validated
    assert [step for step, _ in judged.validated] == [1, EVERY]
    assert judged.validation is not None and held_out is not None
    losses = {True: 0.0, False: 0.0}
    with torch.no_grad():
        for draw in judged.validation.draws:
            batch = held_out.batch(draw.samples, draw.drop_image, draw.drop_text)
            noisy = SCHEDULE.noisy(batch.latents, draw.noise, draw.timesteps)
            for adapted in losses:
                images = judged.adapter(batch.features) if adapted else ()
                found = predict(noisy, draw.timesteps, batch, images)
                losses[adapted] += float((found - draw.noise).square().mean())
    share = judged.validation.share(
        lambda draw, adapted: judged._held_out_loss(held_out, draw, adapted)
    )
    assert share == pytest.approx(losses[True] / losses[False], rel=1e-5)


def test_a_run_that_goes_on_is_judged_alike() -> None:
    base = FrozenBase(predict, lambda *_args: None, SCHEDULE)

    def whole(stop: int, state: TrainState | None = None) -> TrainState:
        left = iter(range(1, stop))
        return run(
            new_adapter(), samples(), base, SETTINGS, lambda _s: bool(next(left, 0)), state
        ).state

    one = whole(1000).tensors()
    stopped = TrainState.from_tensors(whole(7).tensors(), "kept")
    two = whole(1000, stopped).tensors()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert len(one["validated"]) == 2


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="held_out is"):
        replace(SETTINGS, held_out=share)


def test_the_curve_shows_it() -> None:
    plain = loss_curve([1.0, 0.5], [(1, 1.0)], 2)
    judged = loss_curve([1.0, 0.5], [(1, 1.0)], 2, validated=[(1, 1.0), (2, 0.9)])
    assert judged.size == plain.size and judged.tobytes() != plain.tobytes()
