"""How a training does on pictures that it is not shown, now and then on the same draws."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .data import Samples
from .recipe import BatchDraw, Schedule, TrainSettings

EVERY = 50  # steps: all draws cost two passes without gradients at first, one from then on
_DRAWS = 4  # batches, each with noise levels of its own
_SEED = 1


class Validation:
    """Fixed draws over held-out samples. Nothing is dropped and no random number of the training is
    used, so that it changes nothing and every value compares to every other."""

    def __init__(self, samples: Samples, schedule: Schedule, settings: TrainSettings) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        count = min(settings.batch_size, len(samples))
        nobody = torch.zeros(count, dtype=torch.bool)
        self.samples = samples
        self.draws = [
            BatchDraw(
                torch.randperm(len(samples), generator=generator)[:count],
                nobody,
                nobody,
                schedule.draw(count, generator),
                torch.randn((count, *samples.latent_shape), generator=generator),
            )
            for _ in range(_DRAWS)
        ]
        self._without = 0.0

    @torch.no_grad()
    def share(self, loss: Callable[[BatchDraw, bool], float]) -> float:
        """The loss as a share of the base's own; `loss` is told whether the adapter is used."""
        if not self._without:
            self._without = sum(loss(draw, False) for draw in self.draws)
        return sum(loss(draw, True) for draw in self.draws) / self._without
