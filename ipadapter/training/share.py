"""Training in several processes: each takes a part of every batch, all add their gradients up.

Every process draws the same random numbers for the whole batch and computes every `world`-th sample
of it, so a training is the same on any number of processes, but for the rounding of sums, and goes
on on another number. This is data parallelism as torch's DistributedDataParallel does it, with the
sums written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Problem
from .recipe import BatchDraw


def _alone(_tensors: Sequence[Tensor]) -> None:
    """There is nobody to add."""


@dataclass(frozen=True)
class Share:
    """One process of several. add: replaces tensors by their sums over all processes."""

    rank: int = 0
    world: int = 1
    add: Callable[[Sequence[Tensor]], None] = _alone

    def check(self, batch_size: int) -> None:
        """Refuse batches of which some process would have nothing."""
        if batch_size % self.world:
            raise Problem.BAD_VALUE(
                f"batch_size is {batch_size} and there are {self.world} processes: expected a "
                "multiple of them, as each takes an equal part of every batch."
            )

    def of(self, draw: BatchDraw) -> BatchDraw:
        """This process's part of a draw."""
        mine = slice(self.rank, None, self.world)
        return BatchDraw(
            draw.samples[mine],
            draw.drop_image[mine],
            draw.drop_text[mine],
            draw.timesteps[mine],
            draw.noise[mine],
        )

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes of a tensor, the mean of an equal part in each; no gradients."""
        found = value.detach() / self.world
        self.add([found])
        return found

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Let every process have the gradients of the whole batch.

        Each brings those of its own losses, divided by `world`.
        """
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.add([parameter.grad])


ALONE = Share()


def distributed() -> Share:
    """This process of a torch.distributed group that has begun."""
    group = torch.distributed

    def add(tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            group.all_reduce(tensor)

    return Share(group.get_rank(), group.get_world_size(), add)
