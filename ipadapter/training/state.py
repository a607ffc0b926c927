"""Where a training stands: everything that going on later, bit for bit, needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from ..adapters.checkpoint import checkpoint_from_tensors
from ..adapters.spec import identify
from ..adapters.wiring import KEY, VALUE
from ..errors import Problem
from ..files.tensors import TensorMap, open_tensor_file
from .folder import STATE_SUFFIX

logger = logging.getLogger("ipadapter")

_PARTS = ("weights", "exp_avg", "exp_avg_sq", "average")


@dataclass(frozen=True, eq=False)
class TrainState:
    """A training after some optimiser steps.

    weights, exp_avg, exp_avg_sq, average: by parameter name, fp32; the moments are AdamW's, the
    average is empty where none is kept. generator: state of the random numbers. queue: numbers of
    the samples still to come in this round, (n,). losses: (steps,). compared: (n, 2), now and then
    a step and its loss as a share of the loss that the base has without the adapter; validated: the
    same of the pictures held out. studied: (n,), errors of the warm start's steps; before the first
    step of the recipe, moments and generator are the warm start's.
    """

    weights: Mapping[str, Tensor]
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]
    generator: Tensor
    queue: Tensor
    losses: Tensor
    average: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    compared: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.float64))
    studied: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    validated: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.float64))

    @property
    def moments(self) -> dict[str, Mapping[str, Tensor]]:
        """AdamW's, by their names."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    @property
    def in_study(self) -> bool:
        """Whether it was taken in the warm start or just after."""
        return len(self.studied) > 0 and not self.steps

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return len(self.losses)

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The adapter's tensors in the standard layout: the average where one is kept."""
        return self.average or self.weights

    def tensors(self) -> dict[str, Tensor]:
        """Flat, for a file."""
        flat = {
            f"{part}.{name}": tensor
            for part in _PARTS
            for name, tensor in getattr(self, part).items()
        }
        return {
            **flat,
            "generator": self.generator,
            "queue": self.queue,
            "losses": self.losses,
            "compared": self.compared,
            "studied": self.studied,
            "validated": self.validated,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], name: str) -> TrainState:
        """Read what `tensors` wrote. ValueError if something is missing."""
        missing = [key for key in ("generator", "queue", "losses") if key not in tensors]
        if missing:
            raise Problem.TRAINING_RESUME(
                f"{name} is no training state: '{missing[0]}' is missing. Choose the file that "
                "IPAdapter Save wrote beside the adapter, or remove it to begin a new run."
            )
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for key, tensor in tensors.items():
            part, _, parameter = key.partition(".")
            if parameter:
                parts[part][parameter] = tensor
        return cls(
            parts["weights"],
            parts["exp_avg"],
            parts["exp_avg_sq"],
            tensors["generator"].to(torch.uint8),
            tensors["queue"],
            tensors["losses"],
            parts["average"],
            tensors.get("compared", torch.empty(0, 2, dtype=torch.float64)),
            tensors.get("studied", torch.empty(0, dtype=torch.float64)),
            tensors.get("validated", torch.empty(0, 2, dtype=torch.float64)),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainState:
        """Immutable."""
        return self


@dataclass(frozen=True, eq=False)
class TrainedAdapter(Adapter):
    """An adapter that knows where its training stands, so that it can go on."""

    training: TrainState | None = None


def trained_adapter(state: TrainState, name: str, metadata: Mapping[str, str]) -> TrainedAdapter:
    """The adapter as of `state`."""
    checkpoint = checkpoint_from_tensors(TensorMap.of(state.result), name, metadata)
    spec = identify(checkpoint.image_proj.shapes(), checkpoint.ip_adapter.shapes(), name)
    return TrainedAdapter(spec, checkpoint, state)


def state_of(adapter: Adapter) -> TrainState | None:
    """Where an adapter's training stands: from memory, else from the file beside the adapter's."""
    if isinstance(adapter, TrainedAdapter) and adapter.training is not None:
        return adapter.training
    path = adapter.checkpoint.path
    beside = None if path is None else path.with_suffix(STATE_SUFFIX)
    if beside is None or not beside.is_file():
        return None
    state = TrainState.from_tensors(dict(open_tensor_file(beside).tensors), beside.name)
    if not _belongs(state, adapter):
        logger.warning("%s belongs to another adapter than %s.", beside.name, adapter.name)
        return None
    return state


def _belongs(state: TrainState, adapter: Adapter) -> bool:
    """Whether an adapter's first layer is the state's, but for rounding to half precision."""
    held, first = adapter.checkpoint.ip_adapter, adapter.layer_ids[0]
    for key in (f"{first}.{KEY}", f"{first}.{VALUE}"):
        kept = state.result.get(f"ip_adapter.{key}")
        if kept is None or key not in held or kept.shape != held.shape(key):
            return False
        if not torch.allclose(kept.float(), held[key].float(), rtol=1e-2, atol=1e-4):
            return False
    return True
