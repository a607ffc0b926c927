"""What a training needs beside its base, told before it starts, and refused where it cannot fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import comfy.model_management
from torch import nn

from ...errors import Problem
from ...training.recipe import TrainSettings
from .frozen import Frozen

logger = logging.getLogger("ipadapter")

_GB = 1e9
# Of a pass without gradients, by the host's own estimate: every block's activations are kept, or
# with checkpointing only what each is given.
KEPT, RECOMPUTED = 4.0, 1.5


@dataclass(frozen=True)
class Need:
    """Bytes beside the base. adapter: weights, gradients, two moments, an average. activations: of
    one pass of `batch_size`."""

    adapter: float
    activations: float
    batch_size: int

    def fitting_batch(self, free: float) -> int:
        """The largest batch that fits; 0 for none."""
        return int((free - self.adapter) / (self.activations / self.batch_size))


def need_of(
    base: Frozen,
    adapter: nn.Module,
    settings: TrainSettings,
    latent_shape: tuple[int, ...],
    checkpointing: bool,
) -> Need:
    """What a training needs; the activations are an estimate."""
    weights = sum(parameter.numel() for parameter in adapter.parameters())
    copies = 5 if settings.average else 4
    one_pass = base.patcher.memory_required([settings.batch_size, *latent_shape])
    kept = RECOMPUTED if checkpointing else KEPT
    return Need(4.0 * copies * weights, kept * one_pass, settings.batch_size)


def check_fits(need: Need, base: Frozen, checkpointing: bool) -> None:
    """Say what is needed. ValueError, with the setting to change, where that is not free."""
    free = float(comfy.model_management.get_free_memory(base.device))
    whole = need.adapter + need.activations
    told = (
        f"about {whole / _GB:.1f} GB beside the base, {need.adapter / _GB:.1f} for the adapter and "
        f"{need.activations / _GB:.1f} for a pass of {need.batch_size}; "
        f"{free / _GB:.1f} GB are free"
    )
    logger.info("Training needs %s.", told)
    if whole <= free:
        return
    batch = need.fitting_batch(free)
    if batch >= 1:
        advice = f"set batch_size to {batch} and raise accumulation instead"
    elif not checkpointing:
        advice = "switch on checkpointing"
    else:
        advice = "lower resolution, set precision to bf16, and end other programs on this device"
    raise Problem.TRAINING_FAILED(f"This training does not fit: it needs {told}. Please {advice}.")
