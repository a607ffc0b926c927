"""A training that needs no base: two cross-attentions of random matrices, for tests that run it in
processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor

from ipadapter.adapters.families import Family
from ipadapter.attention.folding import KeyValue
from ipadapter.training.data import Batch, Prompts, TrainingSet
from ipadapter.training.recipe import NoiseSchedule, TrainSettings
from ipadapter.training.run import FrozenBase, run
from ipadapter.training.share import Share, distributed
from ipadapter.training.state import TrainState
from ipadapter.training.study import Learn, Lesson
from ipadapter.training.trainable import ProjectorPlan, TrainableAdapter

EMBED, TOKEN, WIDTHS, HEADS = 12, 16, (8, 16), 2


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT = [(rand(w, TOKEN, seed=w), rand(w, TOKEN, seed=w + 1)) for w in WIDTHS]
QUERIES = [rand(w, 4, seed=w + 2) for w in WIDTHS]


def samples(count: int = 9) -> TrainingSet:
    """Pictures whose features say what their captions say."""
    told = rand(count, EMBED, seed=1)
    states = (told @ rand(EMBED, 3 * TOKEN, seed=2)).view(count, 3, TOKEN)
    prompts = Prompts(states, rand(1, 3, TOKEN, seed=4))
    return TrainingSet(rand(count, 4, 4, 4, seed=3), told, torch.zeros(1, EMBED), prompts)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(samples, length, width), head by head."""
    out = []
    for q, k, v in zip(*(t.chunk(HEADS, -1) for t in (query, key, value)), strict=True):
        out.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return torch.cat(out, -1)


def lessons(noisy: Tensor, text: Tensor, empty: Tensor) -> list[Lesson]:
    """What the two layers draw from the text and from the empty one."""
    found = []
    for query_weight, (key, value) in zip(QUERIES, TEXT, strict=True):
        query = noisy.flatten(2).transpose(1, 2) @ query_weight.T
        words = (text, empty.expand(len(text), -1, -1))
        said, unsaid = (attend(query, one @ key.T, one @ value.T) for one in words)
        found.append(Lesson(query, said, unsaid, HEADS))
    return found


def observe(noisy: Tensor, _steps: Tensor, batch: Batch, empty: Tensor, learn: Learn) -> None:
    """The base as a Study calls it."""
    for number, lesson in enumerate(lessons(noisy, batch.text, empty)):
        learn(number, lesson)


def predict(noisy: Tensor, _steps: Tensor, batch: Batch, images: Sequence[KeyValue]) -> Tensor:
    """The base as a Trainer calls it: the noise, plus something that every key and value moves."""
    image = sum((kv.key * kv.value).mean((1, 2)) for kv in images)
    return noisy + (image + batch.text.mean((1, 2))).view(-1, 1, 1, 1)


def new_adapter() -> TrainableAdapter:
    """Of the standard family, seeded."""
    plan = ProjectorPlan(Family.STANDARD, EMBED, TOKEN)
    return TrainableAdapter.create(plan, TEXT, torch.Generator().manual_seed(0))


def whole(steps: int, stop: int, state: TrainState | None, share: Share) -> TrainState:
    """`steps` of warm start and as many of the recipe, stopped after `stop` of both."""
    settings = TrainSettings(
        steps=steps, warm_start=steps, batch_size=4, accumulation=2, learning_rate=1e-3, seed=5
    )
    schedule = NoiseSchedule(torch.linspace(0.03, 14, 1000))
    base, left = FrozenBase(predict, observe, schedule, share), iter(range(1, stop))
    return run(
        new_adapter(), samples(), base, settings, lambda _stage: bool(next(left, 0)), state
    ).state


def one_of_two(rank: int, port: int, steps: int, stop: int, out: str) -> None:
    """A process of two; the first writes where they came to into the file `out`."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    found = whole(steps, stop, None, distributed())
    if rank == 0:
        torch.save(found.tensors(), out)
