"""Training an adapter on a frozen UNet, by the paper's recipe (arXiv 2308.06721, section 4.1).

Only the projector and K', V' learn, from the noise error of single timesteps. Text and image are
dropped now and then, so that guidance works. The UNet is a callable here: it gets the keys and
values of each layer and gives its prediction.

The recipe is the paper's; pictures and words are dropped as here:
https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/tutorial_train.py#L62
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.folding import KeyValue
from ..errors import Problem
from .data import Batch, Samples
from .optimiser import (
    StepFailed,
    check_finite,
    copied,
    explained,
    moments_of,
    new_optimizer,
    restore_moments,
    undone,
)
from .recipe import BatchDraw, Schedule, TrainSettings
from .share import ALONE, Share
from .state import TrainState
from .trainable import TrainableAdapter
from .validation import EVERY, Validation
from .weighting import Weighting

# (noisy latents, timesteps, batch, keys and values per layer) -> prediction, like the latents.
# No keys and values at all: the prediction without an adapter.
Predict = Callable[[Tensor, Tensor, Batch, Sequence[KeyValue]], Tensor]


# Steps from one comparison with the base to the next: each costs one pass without gradients.
COMPARE_EVERY = 10


class Trainer:
    """One training. `step` takes one optimiser step; `state` says where it stands."""

    def __init__(
        self,
        adapter: TrainableAdapter,
        samples: Samples,
        predict: Predict,
        schedule: Schedule,
        settings: TrainSettings,
        held_out: Samples | None = None,
        share: Share = ALONE,
    ) -> None:
        """adapter: moved to the settings' device and changed in place. held_out: judge it. share:
        this process's part, of several."""
        share.check(settings.batch_size)
        self.share = share
        self.adapter = adapter.to(settings.device)
        self.samples, self.predict = samples, predict
        self.schedule, self.settings = schedule, settings
        self.optimizer = new_optimizer(adapter, settings.learning_rate, settings)
        # On the CPU, so that a seed means the same on every device.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.queue = torch.empty(0, dtype=torch.int64)
        self.losses: list[float] = []
        self.studied = torch.empty(0, dtype=torch.float64)  # errors of the warm start before
        self.compared: list[tuple[int, float]] = []
        self.validated: list[tuple[int, float]] = []
        self.validation = None if held_out is None else Validation(held_out, schedule, settings)
        self.average: dict[str, Tensor] = {}
        if settings.average:
            self.average = {name: p.detach().clone() for name, p in self._named()}

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return len(self.losses)

    @property
    def total(self) -> int:
        """Optimiser steps to take."""
        return self.settings.steps

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.adapter.named_parameters())

    def draw(self) -> BatchDraw:
        """Random choices of the next batch. Every sample comes once before any comes again."""
        settings, generator = self.settings, self.generator
        count = settings.batch_size
        while len(self.queue) < count:
            fresh = torch.randperm(len(self.samples), generator=generator)
            self.queue = torch.cat((self.queue, fresh))
        samples, self.queue = self.queue[:count], self.queue[count:]
        chance = torch.rand(count, generator=generator)
        only_image = settings.drop_image
        any_text = only_image + settings.drop_text
        both = (chance >= any_text) & (chance < any_text + settings.drop_both)
        shape = (count, *self.samples.latent_shape)
        timesteps = self.schedule.draw(count, generator)
        noise = torch.randn(shape, generator=generator)
        if settings.noise_offset:
            offset = torch.randn((*shape[:2], *[1] * len(shape[2:])), generator=generator)
            noise = noise + settings.noise_offset * offset
        return BatchDraw(
            samples,
            (chance < only_image) | both,
            ((chance >= only_image) & (chance < any_text)) | both,
            timesteps,
            noise,
        )

    def loss(self, draw: BatchDraw) -> Tensor:
        """Mean squared error of the UNet's prediction, a scalar with gradients."""
        return self._loss(draw, self._batch(draw))

    def _loss(self, draw: BatchDraw, batch: Batch) -> Tensor:
        settings = self.settings
        enabled = settings.dtype != torch.float32
        with torch.autocast(settings.device.type, settings.dtype, enabled=enabled):
            key_values = self.adapter(batch.features.float())
        return self._error(batch, draw, key_values)

    def _batch(self, draw: BatchDraw) -> Batch:
        batch = self.samples.batch(draw.samples, draw.drop_image, draw.drop_text)
        return batch.to(self.settings.device)

    def _error(self, batch: Batch, draw: BatchDraw, key_values: Sequence[KeyValue]) -> Tensor:
        noise, timesteps = (part.to(batch.latents.device) for part in (draw.noise, draw.timesteps))
        noisy = self.schedule.noisy(batch.latents.float(), noise, timesteps)
        predicted = self.predict(noisy, timesteps, batch, key_values)
        target = self.schedule.target(batch.latents.float(), noise, timesteps)
        counts, gamma = self.settings.counts, self.settings.min_snr
        if counts is Weighting.PLAIN:
            return functional.mse_loss(predicted.float(), target)
        errors = (predicted.float() - target).square().flatten(1).mean(1)
        return (errors * self.schedule.weights(timesteps, gamma, counts)).mean()

    def step(self) -> float:
        """One optimiser step over `accumulation` batches; returns its loss.

        Raises StepFailed, with nothing changed, where the loss or a gradient is not finite or
        memory runs out.
        """
        queue, told = self.queue, explained("Training", self.steps + 1, self.settings)
        try:
            with undone(self.optimizer, self.generator), told:
                loss = self._backward()
        except Exception:
            self.queue = queue
            raise
        self.optimizer.step()
        self.losses.append(loss)
        for name, parameter in self._named() if self.average else ():
            # The mean of the first steps, so that the start is soon forgotten.
            decay = min(self.settings.average, self.steps / (self.steps + 10))
            self.average[name].lerp_(parameter.detach(), 1 - decay)
        if self.validation is not None and (self.steps == 1 or not self.steps % EVERY):
            share = self.validation.share(partial(self._held_out_loss, self.validation.samples))
            self.validated.append((self.steps, share))
        return loss

    def _held_out_loss(self, samples: Samples, draw: BatchDraw, adapted: bool) -> float:
        batch = samples.batch(draw.samples, draw.drop_image, draw.drop_text)
        batch = batch.to(self.settings.device)
        return float(self._loss(draw, batch) if adapted else self._error(batch, draw, ()))

    def _part(self) -> tuple[BatchDraw, float]:
        """One draw of a step and its loss, its gradient added."""
        draw = self.share.of(self.draw())
        loss = self.loss(draw)
        (loss / self.settings.accumulation / self.share.world).backward()
        return draw, float(self.share.mean(loss))

    def _backward(self) -> float:
        parts = [self._part() for _ in range(self.settings.accumulation)]
        total = sum(loss / len(parts) for _, loss in parts)
        draw, last = parts[-1]
        self.share.add_gradients(list(self.adapter.parameters()))
        check_finite(total, self.adapter.parameters())
        if self.steps % COMPARE_EVERY == 0:
            with torch.no_grad():
                without = self.share.mean(self._error(self._batch(draw), draw, ()))
            self.compared.append((self.steps + 1, float(last / without)))
        return total

    def state(self) -> TrainState:
        """A copy of where the training stands, on the CPU."""
        return TrainState(
            {name: copied(p) for name, p in self._named()},
            *moments_of(self.optimizer, self.adapter).values(),
            generator=self.generator.get_state(),
            queue=self.queue.clone(),
            losses=torch.tensor(self.losses, dtype=torch.float64),
            average={name: copied(tensor) for name, tensor in self.average.items()},
            compared=torch.tensor(self.compared, dtype=torch.float64).view(-1, 2),
            studied=self.studied,
            validated=torch.tensor(self.validated, dtype=torch.float64).view(-1, 2),
        )

    def restore(self, state: TrainState) -> None:
        """Go on where `state` was taken; same data and settings give the same weights, bit for
        bit on a CPU."""
        _check_fits(state.weights, dict(self._named()))
        _check_queue(state.queue, len(self.samples))
        for name, parameter in self._named():
            parameter.data.copy_(state.weights[name])
            if self.average:
                kept = state.average.get(name, state.weights[name])
                self.average[name] = kept.to(parameter.data, copy=True)
        self.studied = state.studied
        if state.in_study:
            return  # its optimiser and its random numbers were the warm start's
        restore_moments(self.optimizer, self.adapter, state.moments, state.steps)
        self.generator.set_state(state.generator)
        self.queue = state.queue.clone()
        self.losses = state.losses.tolist()
        self.compared, self.validated = _pairs(state.compared), _pairs(state.validated)


class Steps(Protocol):
    """Part of a training: the warm start or the recipe."""

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        ...

    @property
    def total(self) -> int:
        """Optimiser steps to take."""
        ...

    def step(self) -> float:
        """One optimiser step; returns its loss. StepFailed, with nothing changed, if it fails."""
        ...


def train(stage: Steps, report: Callable[[int, float], bool]) -> str | None:
    """Take the remaining steps. Returns None at the end, else why it stopped before.

    report: told each step and its loss; False stops there. A step that fails ends the training too,
    with what was reached so far; only the very first one raises StepFailed.
    """
    while stage.steps < stage.total:
        try:
            loss = stage.step()
        except StepFailed as error:
            if not stage.steps:
                raise Problem.TRAINING_FAILED(str(error), StepFailed) from error
            return str(error)
        if not report(stage.steps, loss):
            return f"Stopped after step {stage.steps} of {stage.total}."
    return None


def _pairs(kept: Tensor) -> list[tuple[int, float]]:
    """Steps and shares, from (n, 2)."""
    rows: Any = kept.tolist()
    return [(int(step), share) for step, share in rows]


def _check_fits(weights: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
    for name in {*weights, *named}:
        found = tuple(weights[name].shape) if name in weights else None
        expected = tuple(named[name].shape) if name in named else None
        if found != expected:
            raise Problem.TRAINING_RESUME(
                f"resume_from is another adapter: {name} is {found}, expected {expected}. Set "
                "family and num_tokens as in the first run, or disconnect resume_from."
            )


def _check_queue(queue: Tensor, count: int) -> None:
    if len(queue) and int(queue.max()) >= count:
        raise Problem.TRAINING_RESUME(
            f"resume_from was trained on more images than the {count} that are connected. Connect "
            "the same images, or load the adapter without its training state."
        )
