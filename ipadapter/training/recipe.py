"""The recipe: what the base predicts, its noise levels, and the settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import Problem
from .weighting import MIN_SNR, Prediction, Weighting, weights

_MOST_HELD_OUT = 0.5
EARLY_POWER = 0.6  # timesteps as u^0.6 of all


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    steps: optimiser steps in all, those of a resumed run included. accumulation: batches per step.
    drop_*: how often only the image, only the text, or both are replaced by nothing. noise_offset:
    share of noise that is the same over a whole channel. average: decay of a running mean of the
    weights, which is then the result; 0 for none. weighting: what counts at each noise level
    (`weighting.py`); min_snr: of min-SNR, which a number chooses too; 0 for its usual value.
    warm_start: steps of study before (`study.py`). held_out: share of the pictures that are not
    trained on and judge it (`validation.py`). dtype: what the adapter computes in; its weights stay
    fp32.
    """

    steps: int = 1000
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    seed: int = 0
    drop_image: float = 0.05
    drop_text: float = 0.05
    drop_both: float = 0.05
    noise_offset: float = 0.0
    average: float = 0.0
    weighting: Weighting = Weighting.PLAIN
    min_snr: float = 0.0
    warm_start: int = 0
    held_out: float = 0.0
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise Problem.BAD_VALUE(f"{name} is {getattr(self, name)}: expected 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise Problem.BAD_VALUE(
                f"learning_rate is {self.learning_rate}: expected above 0, usually 1e-4."
            )
        drops = (self.drop_image, self.drop_text, self.drop_both)
        if min(drops) < 0 or sum(drops) > 1:
            raise Problem.BAD_VALUE(
                f"The drop rates are {drops}: expected 0 or more each, 1 at most together."
            )
        if not (math.isfinite(self.min_snr) and self.min_snr >= 0):
            raise Problem.BAD_VALUE(
                f"min_snr is {self.min_snr}: expected 0 (none) or above, usually 5."
            )
        if self.warm_start < 0:
            raise Problem.BAD_VALUE(
                f"warm_start is {self.warm_start}: expected 0 (none) or more steps."
            )
        if not 0 <= self.held_out <= _MOST_HELD_OUT:
            raise Problem.BAD_VALUE(
                f"held_out is {self.held_out}: expected a share of 0 (none) to {_MOST_HELD_OUT}."
            )
        if not 0 <= self.average < 1:
            raise Problem.BAD_VALUE(f"average is {self.average}: expected 0 (none) to below 1.")

    @property
    def counts(self) -> Weighting:
        """What counts at each noise level."""
        return Weighting.MIN_SNR if self.min_snr else self.weighting


class Schedule(Protocol):
    """Noise levels of a base, and what it predicts at them: noise or velocity at numbered timesteps
    (`NoiseSchedule`), or a flow (`flow.py`)."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random timesteps of a batch, (count,)."""
        ...

    def early(self, shares: Tensor) -> Tensor:
        """Timesteps (n,) from random numbers of 0 to 1, the noisy ones more often."""
        ...

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor, /) -> Tensor:
        """Latents with noise added, as the base sees them."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor, /) -> Tensor:
        """What the base should predict."""
        ...

    def weights(self, timesteps: Tensor, min_snr: float, weighting: Weighting, /) -> Tensor:
        """Weight of each sample's error (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """sigmas: (timesteps,), noise over signal of each timestep, ascending."""

    sigmas: Tensor
    prediction: Prediction = Prediction.EPS

    def amounts(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """How much signal and how much noise a noisy latent has: (samples, 1, 1, 1) each."""
        sigmas = self.sigmas.to(timesteps.device, torch.float32)[timesteps].view(-1, 1, 1, 1)
        signal = (1 + sigmas.square()).rsqrt()
        return signal, sigmas * signal

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random timesteps of a batch, (count,)."""
        return torch.randint(len(self.sigmas), (count,), generator=generator)

    def early(self, shares: Tensor) -> Tensor:
        """Timesteps (n,) from random numbers of 0 to 1, the noisy ones more often: one in ten below
        a quarter."""
        return (len(self.sigmas) * shares**EARLY_POWER).long()

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with noise added, of unit variance."""
        signal, amount = self.amounts(timesteps)
        return signal * latents + amount * noise

    def weights(
        self, timesteps: Tensor, min_snr: float, weighting: Weighting = Weighting.MIN_SNR
    ) -> Tensor:
        """Weight of each sample's error (n,)."""
        signal, amount = (part.flatten() for part in self.amounts(timesteps))
        return weights((signal / amount).square(), self.prediction, weighting, min_snr or MIN_SNR)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should predict."""
        if self.prediction is Prediction.EPS:
            return noise
        signal, amount = self.amounts(timesteps)
        return signal * noise - amount * latents


@dataclass(frozen=True, eq=False)
class BatchDraw:
    """The random choices of one batch: numbers of the samples, drops, timesteps, (n,)
    each, and the noise."""

    samples: Tensor
    drop_image: Tensor
    drop_text: Tensor
    timesteps: Tensor
    noise: Tensor
