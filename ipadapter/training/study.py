"""The warm start: every layer learns to draw from the picture what the caption adds there.

The recipe tells an adapter only how wrong the whole picture's noise is, so from nothing it takes
tens of thousands of steps to find out what each layer should say. A captioned picture tells it
directly: in every cross-attention, the caption gives something that the empty caption does not,

    added = Attn(Q, K, V) - Attn(Q, K_empty, V_empty)

and `Attn(Q, K', V')` should give the same from the picture. The base is asked once per step and not
differentiated; each layer's error is a share of what there is to learn in it, so that all count
alike. Measured on the demo base: scripts/demoset/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.decoupled import image_attention
from ..attention.folding import KeyValue
from .data import Batch, Samples
from .optimiser import (
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

# Of the recipe's learning rate: nothing that is learned here can spoil the base's own pictures.
RATE = 10.0
DROP = 0.05  # how often image and caption are left out: no picture adds nothing
_RISING = 50  # steps until the rate is reached
_NOTHING = 1e-6  # share of the text's power below which a caption adds nothing


@dataclass(frozen=True, eq=False)
class Lesson:
    """One cross-attention in one call of the base.

    query: (samples, length, width). text, nothing: (samples, length, width), what the queries draw
    from the caption and from the empty one.
    """

    query: Tensor
    text: Tensor
    nothing: Tensor
    heads: int

    def error(self, image: KeyValue, share: Share = ALONE) -> Tensor:
        """Squared error of the image attention, as a share of what there is to learn; a scalar, 0
        where the caption adds nothing. share: of how many processes' samples."""
        query, text, nothing = (part.float() for part in (self.query, self.text, self.nothing))
        added = text - nothing
        key, value = image.key.float(), image.value.float()
        error = (image_attention(query, key, value, self.heads) - added).square().mean()
        power, whole = share.mean(torch.stack((added.square().mean(), text.square().mean())))
        something = power > _NOTHING * whole
        return error * something / power.where(something, torch.ones_like(power))


Learn = Callable[[int, Lesson], None]
# (noisy latents, timesteps, batch, empty text (1, length, width), learn): one call of the base,
# which tells `learn` every layer's number and lesson.
Observe = Callable[[Tensor, Tensor, Batch, Tensor, Learn], None]


class Study:
    """One warm start. `step` takes one optimiser step; `state` says where it stands."""

    def __init__(
        self,
        adapter: TrainableAdapter,
        samples: Samples,
        observe: Observe,
        schedule: Schedule,
        settings: TrainSettings,
        share: Share = ALONE,
    ) -> None:
        """adapter: moved to the settings' device and changed in place. share: this process's part,
        of several."""
        share.check(settings.batch_size)
        self.share = share
        self.adapter = adapter.to(settings.device)
        self.samples, self.observe = samples, observe
        self.schedule, self.settings = schedule, settings
        self.optimizer = new_optimizer(adapter, settings.learning_rate * RATE, settings)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.errors: list[float] = []

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return len(self.errors)

    @property
    def total(self) -> int:
        """Optimiser steps to take."""
        return self.settings.warm_start

    def draw(self) -> BatchDraw:
        """Random choices of the next batch; noisy timesteps come more often, as what a picture
        shows is decided there."""
        count, generator = self.settings.batch_size, self.generator
        shares = torch.rand(3, count, generator=generator)
        dropped = shares[1] < DROP
        dropped[0] = False  # something to learn in every batch
        return BatchDraw(
            (shares[2] * len(self.samples)).long(),
            dropped,
            dropped,
            self.schedule.early(shares[0]),
            torch.randn((count, *self.samples.latent_shape), generator=generator),
        )

    def gradients(self, draw: BatchDraw) -> list[float]:
        """Add the gradient of one batch; returns each layer's error."""
        settings = self.settings
        batch = self.samples.batch(draw.samples, draw.drop_image, draw.drop_text)
        batch = batch.to(settings.device)
        noise, timesteps = (part.to(settings.device) for part in (draw.noise, draw.timesteps))
        images = self.adapter(batch.features.float())
        leaves = [_leaf(image) for image in images]
        errors: list[Tensor] = [torch.zeros(())] * len(leaves)
        part = 1 / (len(leaves) * settings.accumulation * self.share.world)

        def learn(layer: int, lesson: Lesson) -> None:
            # At once, so that no more than one layer's activations are held.
            with torch.enable_grad(), torch.autocast(settings.device.type, enabled=False):
                error = lesson.error(leaves[layer], self.share)
                (error * part).backward()
            errors[layer] = error.detach()

        noisy = self.schedule.noisy(batch.latents.float(), noise, timesteps)
        with torch.no_grad():
            self.observe(noisy, timesteps, batch, self.samples.empty_text, learn)
        _pass_on(images, leaves)
        return self.share.mean(torch.stack(errors)).tolist()

    def step(self) -> float:
        """One optimiser step; returns the mean of the layers' errors.

        Raises StepFailed, with nothing changed, as `Trainer.step` does.
        """
        told = explained("The warm start", self.steps + 1, self.settings)
        with undone(self.optimizer, self.generator), told:
            draws = [self.draw() for _ in range(self.settings.accumulation)]
            parts = [self.gradients(self.share.of(draw)) for draw in draws]
            self.share.add_gradients(list(self.adapter.parameters()))
            error = sum(sum(part) / len(part) for part in parts) / len(parts)
            check_finite(error, self.adapter.parameters())
        self.optimizer.param_groups[0]["lr"] = self._rate()
        self.optimizer.step()
        self.errors.append(error)
        return error

    def _rate(self) -> float:
        """Rises at first, then falls to a fiftieth."""
        done = self.steps / self.settings.warm_start
        falling = 0.02 + 0.98 * math.cos(done * math.pi / 2)
        rising = min(1.0, (self.steps + 1) / _RISING)
        return RATE * self.settings.learning_rate * rising * falling

    def state(self) -> TrainState:
        """A copy of where the training stands: before the recipe's first step."""
        return TrainState(
            {name: copied(p) for name, p in self.adapter.named_parameters()},
            *moments_of(self.optimizer, self.adapter).values(),
            generator=self.generator.get_state(),
            queue=torch.empty(0, dtype=torch.int64),
            losses=torch.empty(0, dtype=torch.float64),
            studied=torch.tensor(self.errors, dtype=torch.float64),
        )

    def restore(self, state: TrainState) -> None:
        """Go on where `state` was taken, in the middle of a warm start."""
        for name, parameter in self.adapter.named_parameters():
            parameter.data.copy_(state.weights[name])
        restore_moments(self.optimizer, self.adapter, state.moments, len(state.studied))
        self.generator.set_state(state.generator)
        self.errors = state.studied.tolist()


def _pass_on(images: Sequence[KeyValue], leaves: Sequence[KeyValue]) -> None:
    """Hand the gradients of the layers' keys and values on to the adapter."""
    outputs = [part for image in images for part in (image.key, image.value)]
    grads = [part.grad for leaf in leaves for part in (leaf.key, leaf.value)]
    torch.autograd.backward(outputs, grads)


def _leaf(image: KeyValue) -> KeyValue:
    """The same keys and values, whose gradients are gathered in them."""
    return KeyValue(image.key.detach().requires_grad_(), image.value.detach().requires_grad_())
