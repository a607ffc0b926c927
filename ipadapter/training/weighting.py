"""How much an error counts at each noise level: a table, one row per choice of the node.

Every rule says what the squared error of the *noise* counts at a signal-to-noise ratio; what a
model predicts besides noise is brought to that first, as all are one error at another scale:

    x = s * picture + n * noise,   SNR = (s / n)^2
    velocity (s * noise - n * picture):  noise error = s^2 * velocity error       (variance kept)
    flow (noise - picture, s = 1 - n):   noise error = s^2 * flow error
    picture error = noise error / SNR
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

import torch
from torch import Tensor


class Prediction(str, Enum):
    """What a base predicts."""

    EPS = "noise"
    V = "velocity"
    FLOW = "flow"


class Weighting(str, Enum):
    """What counts, as the node shows it."""

    PLAIN = "plain"
    MIN_SNR = "min-SNR"
    PICTURE = "picture"


MIN_SNR = 5.0  # the published value
_SHAPES = 0.3, 5.0  # SNRs between which errors count as errors of the noise


def min_snr(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR: late steps, which correct little, count less. For long
    trainings; Hang et al., arXiv 2303.09556, eq. 5. As in
    https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/text_to_image/train_text_to_image.py#L1025-L1035
    """
    return snr.clamp(max=gamma) / snr


def picture(snr: Tensor, _gamma: float) -> Tensor:
    """SNR kept within .3 to 5, over SNR: at high noise, where layout and shapes are decided, the
    error of the picture counts, which is many times the noise's. For small sets and short
    trainings; it taught the demo base its shapes (scripts/demoset/README.md)."""
    return snr.clamp(*_SHAPES) / snr


# PLAIN has none: the mean squared error of whatever the base predicts. The paper's choice (arXiv
# 2308.06721, eq. 6), for everything else: SD's noise, SD2's velocity (Salimans and Ho, arXiv
# 2202.00512), rectified flow (Liu et al., arXiv 2209.03003).
RULES: Mapping[Weighting, Callable[[Tensor, float], Tensor]] = {
    Weighting.MIN_SNR: min_snr,
    Weighting.PICTURE: picture,
}


def _one(snr: Tensor) -> Tensor:
    return torch.ones_like(snr)


def _kept(snr: Tensor) -> Tensor:
    return snr / (snr + 1)


def _straight(snr: Tensor) -> Tensor:
    root = snr.sqrt()
    return (root / (1 + root)).square()


# By prediction, the error of the noise over the error of what is predicted.
NOISE_ERRORS: Mapping[Prediction, Callable[[Tensor], Tensor]] = {
    Prediction.EPS: _one,
    Prediction.V: _kept,
    Prediction.FLOW: _straight,
}


def weights(
    snr: Tensor, prediction: Prediction, weighting: Weighting, gamma: float = MIN_SNR
) -> Tensor:
    """Weight of each sample's squared error, (n,), by its signal-to-noise ratio, (n,)."""
    if weighting is Weighting.PLAIN:
        return torch.ones_like(snr)
    return RULES[weighting](snr, gamma) * NOISE_ERRORS[prediction](snr)
