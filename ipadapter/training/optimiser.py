"""What the warm start and the recipe share: a step that is taken whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .recipe import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


class StepFailed(ValueError):
    """A step could not be taken; the weights are those of the step before."""


def new_optimizer(module: nn.Module, rate: float, settings: TrainSettings) -> torch.optim.AdamW:
    """The paper's AdamW."""
    return torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=settings.weight_decay)


def moments_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Copies of AdamW's moments on the CPU, by their names and the parameters'."""
    named = [(n, p) for n, p in module.named_parameters() if p in optimizer.state]
    return {part: {n: copied(optimizer.state[p][part]) for n, p in named} for part in MOMENTS}


def restore_moments(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    moments: Mapping[str, Mapping[str, Tensor]],
    steps: int,
) -> None:
    """Give AdamW what `moments_of` took after `steps` steps."""
    for name, parameter in module.named_parameters() if steps else ():
        held = {part: moments[part][name].to(parameter, copy=True) for part in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **held}


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().to("cpu", copy=True)


def check_finite(loss: float, parameters: Iterable[Tensor]) -> None:
    """Raise StepFailed where a loss or one of its gradients is not a finite number."""
    norms: list[Tensor] = [p.grad.norm() for p in parameters if p.grad is not None]
    if not math.isfinite(loss):
        raise StepFailed(f"the loss is {loss}")
    if not torch.isfinite(torch.stack(norms)).all():
        raise StepFailed("a gradient is infinite")


@contextmanager
def undone(
    optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> Generator[None, None, None]:
    """A step's gradients and random draws, forgotten again where an error ends it."""
    before = generator.get_state()
    optimizer.zero_grad(set_to_none=True)
    try:
        yield
    except Exception:
        optimizer.zero_grad(set_to_none=True)
        generator.set_state(before)
        raise


@contextmanager
def explained(what: str, step: int, settings: TrainSettings) -> Generator[None, None, None]:
    """Turn the errors of a step into StepFailed with the setting to change; others as they are."""
    try:
        yield
    except StepFailed as error:
        raise StepFailed(
            f"{what} stopped at step {step}: {error}. The weights of step {step - 1} are kept. "
            f"Lower learning_rate (it is {settings.learning_rate:g}), set precision to fp32, and "
            "look for broken images in the data."
        ) from error
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        raise StepFailed(
            f"Memory ran out at step {step}. The weights of step {step - 1} are kept. Lower "
            f"batch_size (it is {settings.batch_size}) and raise accumulation instead; then lower "
            "resolution, or set precision to bf16."
        ) from error


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
