"""Noise levels of bases that learn a straight flow from noise to picture.

x = (1 - t) * picture + t * noise, and the base predicts noise - picture (rectified flow, Liu et
al., arXiv 2209.03003). t is drawn by Esser et al., arXiv 2403.03206: most from the middle, by the
logistic of a normal number (section 3.1), then shifted towards noise as the base was trained
(eq. 23). As in
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/training_utils.py#L211
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/dreambooth/train_dreambooth_lora_sd3.py#L1784-L1821
XLabs trained Flux so, without a shift:
https://github.com/XLabs-AI/x-flux/blob/47495425dbed499be1e8e5a6e52628b07349cba2/train_flux_deepspeed.py#L225-L241
and NVIDIA Cosmos, whose error of the picture at a noise level s = t / (1 - t), times (1 + s^2) /
s^2, is the flow's error times t^2 + (1 - t)^2, half to one, which is left out here:
https://github.com/nvidia-cosmos/cosmos-predict2/blob/23f5a9e0b5b2c829eb6be88a266646616e7b1a88/cosmos_predict2/models/text2image_model.py
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .recipe import EARLY_POWER
from .weighting import MIN_SNR, Prediction, Weighting, weights


class Spread(str, Enum):
    """How often each time is trained on."""

    LOGIT_NORMAL = "logit-normal"
    UNIFORM = "uniform"


@dataclass(frozen=True)
class FlowSchedule:
    """Times from 0, the picture, to 1, noise. shift: the base's own; 1 for none."""

    shift: float = 1.0
    spread: Spread = Spread.LOGIT_NORMAL
    prediction = Prediction.FLOW

    def shifted(self, times: Tensor) -> Tensor:
        """Times as the base counts them: towards noise, where the shift is above 1."""
        return self.shift * times / (1 + (self.shift - 1) * times)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random times of a batch, (count,)."""
        if self.spread is Spread.UNIFORM:
            return self.shifted(torch.rand(count, generator=generator))
        return self.shifted(torch.randn(count, generator=generator).sigmoid())

    def early(self, shares: Tensor) -> Tensor:
        """Times (n,) from random numbers of 0 to 1, the noisy ones more often."""
        return self.shifted(shares**EARLY_POWER)

    def amounts(self, times: Tensor, dims: int = 4) -> tuple[Tensor, Tensor]:
        """How much signal and how much noise a noisy latent of `dims` dimensions has."""
        noise = times.float().view(-1, *[1] * (dims - 1))
        return 1 - noise, noise

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents with noise added."""
        signal, amount = self.amounts(times, latents.ndim)
        return signal * latents + amount * noise

    def target(self, latents: Tensor, noise: Tensor, _times: Tensor) -> Tensor:
        """What the base should predict."""
        return noise - latents

    def weights(
        self, times: Tensor, min_snr: float, weighting: Weighting = Weighting.MIN_SNR
    ) -> Tensor:
        """Weight of each sample's error (n,)."""
        signal, amount = (part.flatten() for part in self.amounts(times))
        return weights((signal / amount).square(), self.prediction, weighting, min_snr or MIN_SNR)
