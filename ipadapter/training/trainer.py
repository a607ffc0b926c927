"""Training an adapter on a frozen UNet, by the paper's recipe (arXiv 2308.06721, section 4.1).

Only the projector and K', V' learn, from the noise error of single timesteps. Text and image are
dropped now and then, so that guidance works. The UNet is a callable here: it gets the keys and
values of each layer and gives its prediction.

The recipe is the paper's; pictures and words are dropped as here:
https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/tutorial_train.py#L62
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.folding import KeyValue
from ..errors import Problem
from .data import Batch, Samples
from .recipe import BatchDraw, NoiseSchedule, TrainSettings
from .state import TrainState
from .trainable import TrainableAdapter

# (noisy latents, timesteps, batch, keys and values per layer) -> prediction, like the latents.
# No keys and values at all: the prediction without an adapter.
Predict = Callable[[Tensor, Tensor, Batch, Sequence[KeyValue]], Tensor]


# Steps from one comparison with the base to the next: each costs one pass without gradients.
COMPARE_EVERY = 10


class StepFailed(ValueError):
    """A step could not be taken; the weights are those of the step before."""


class Trainer:
    """One training. `step` takes one optimiser step; `state` says where it stands."""

    def __init__(
        self,
        adapter: TrainableAdapter,
        samples: Samples,
        predict: Predict,
        schedule: NoiseSchedule,
        settings: TrainSettings,
    ) -> None:
        """adapter: moved to the settings' device and changed in place."""
        self.adapter = adapter.to(settings.device)
        self.samples, self.predict = samples, predict
        self.schedule, self.settings = schedule, settings
        self.optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        # On the CPU, so that a seed means the same on every device.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.queue = torch.empty(0, dtype=torch.int64)
        self.losses: list[float] = []
        self.compared: list[tuple[int, float]] = []
        self.average: dict[str, Tensor] = {}
        if settings.average:
            self.average = {name: p.detach().clone() for name, p in self._named()}

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return len(self.losses)

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
        timesteps = torch.randint(len(self.schedule.sigmas), (count,), generator=generator)
        noise = torch.randn(shape, generator=generator)
        if settings.noise_offset:
            offset = torch.randn((*shape[:2], 1, 1), generator=generator)
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
        batch, settings = self._batch(draw), self.settings
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
        if not self.settings.min_snr:
            return functional.mse_loss(predicted.float(), target)
        errors = (predicted.float() - target).square().mean((1, 2, 3))
        return (errors * self.schedule.weights(timesteps, self.settings.min_snr)).mean()

    def step(self) -> float:
        """One optimiser step over `accumulation` batches; returns its loss.

        Raises StepFailed, with nothing changed, where the loss or a gradient is not finite or
        memory runs out.
        """
        before = self.generator.get_state(), self.queue
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = self._backward()
        except (RuntimeError, StepFailed) as error:
            self.optimizer.zero_grad(set_to_none=True)
            self.generator.set_state(before[0])
            self.queue = before[1]
            raise _explained(error, self.steps + 1, self.settings) from error
        self.optimizer.step()
        self.losses.append(loss)
        for name, parameter in self._named() if self.average else ():
            # The mean of the first steps, so that the start is soon forgotten.
            decay = min(self.settings.average, self.steps / (self.steps + 10))
            self.average[name].lerp_(parameter.detach(), 1 - decay)
        return loss

    def _part(self) -> tuple[BatchDraw, float]:
        """One draw of a step and its loss, its gradient added."""
        draw = self.draw()
        loss = self.loss(draw)
        (loss / self.settings.accumulation).backward()
        return draw, float(loss.detach())

    def _backward(self) -> float:
        parts = [self._part() for _ in range(self.settings.accumulation)]
        total = sum(loss / len(parts) for _, loss in parts)
        draw, last = parts[-1]
        norms: list[Tensor] = [
            p.grad.norm() for p in self.adapter.parameters() if p.grad is not None
        ]
        if not (math.isfinite(total) and torch.isfinite(torch.stack(norms)).all()):
            found = f"the loss is {total}" if not math.isfinite(total) else "a gradient is infinite"
            raise StepFailed(found)
        if self.steps % COMPARE_EVERY == 0:
            with torch.no_grad():
                without = self._error(self._batch(draw), draw, ())
            self.compared.append((self.steps + 1, float(last / without)))
        return total

    def state(self) -> TrainState:
        """A copy of where the training stands, on the CPU."""
        moments = {
            part: {
                name: _copy(self.optimizer.state[p][part])
                for name, p in self._named()
                if p in self.optimizer.state
            }
            for part in ("exp_avg", "exp_avg_sq")
        }
        return TrainState(
            {name: _copy(p) for name, p in self._named()},
            moments["exp_avg"],
            moments["exp_avg_sq"],
            self.generator.get_state(),
            self.queue.clone(),
            torch.tensor(self.losses, dtype=torch.float64),
            {name: _copy(tensor) for name, tensor in self.average.items()},
            torch.tensor(self.compared, dtype=torch.float64).view(-1, 2),
        )

    def restore(self, state: TrainState) -> None:
        """Go on where `state` was taken; same data and settings give the same weights, bit for
        bit on a CPU."""
        _check_fits(state.weights, dict(self._named()))
        _check_queue(state.queue, len(self.samples))
        for name, parameter in self._named():
            parameter.data.copy_(state.weights[name])
            if state.steps:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.steps)),
                    "exp_avg": state.exp_avg[name].to(parameter, copy=True),
                    "exp_avg_sq": state.exp_avg_sq[name].to(parameter, copy=True),
                }
            if self.average:
                kept = state.average.get(name, state.weights[name])
                self.average[name] = kept.to(parameter.data, copy=True)
        self.generator.set_state(state.generator)
        self.queue = state.queue.clone()
        self.losses = state.losses.tolist()
        compared: Any = state.compared.tolist()
        self.compared = [(int(step), share) for step, share in compared]


def train(trainer: Trainer, report: Callable[[int, float], bool]) -> str | None:
    """Take the remaining steps. Returns None at the end, else why it stopped before.

    report: told each step and its loss; False stops there. A step that fails ends the training too,
    with what was reached so far; only the very first one raises StepFailed.
    """
    while trainer.steps < trainer.settings.steps:
        try:
            loss = trainer.step()
        except StepFailed as error:
            if not trainer.steps:
                raise Problem.TRAINING_FAILED(str(error), StepFailed) from error
            return str(error)
        if not report(trainer.steps, loss):
            return f"Stopped after step {trainer.steps} of {trainer.settings.steps}."
    return None


def _explained(error: Exception, step: int, settings: TrainSettings) -> Exception:
    """The error of a failed step with the setting to change; other errors as they are."""
    if isinstance(error, StepFailed):
        return StepFailed(
            f"Training stopped at step {step}: {error}. The weights of step {step - 1} are kept. "
            f"Lower learning_rate (it is {settings.learning_rate:g}), set precision to fp32, and "
            "look for broken images in the data."
        )
    if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
        return StepFailed(
            f"Memory ran out at step {step}. The weights of step {step - 1} are kept. Lower "
            f"batch_size (it is {settings.batch_size}) and raise accumulation instead; then lower "
            "resolution, or set precision to bf16."
        )
    return error


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


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
