"""A whole training: the warm start where one is due, then the recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from .data import Samples, split
from .recipe import Schedule, TrainSettings
from .share import ALONE, Share
from .state import TrainState
from .study import Observe, Study
from .trainable import TrainableAdapter
from .trainer import Predict, Trainer, train

logger = logging.getLogger("ipadapter")


@dataclass(frozen=True, eq=False)
class FrozenBase:
    """What a training asks of a base model; its sibling module on the host's side makes it. share:
    which of several processes this one is."""

    predict: Predict
    observe: Observe
    schedule: Schedule
    share: Share = ALONE


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where a training came to. notice: why it stopped early, or nothing."""

    state: TrainState
    notice: str = ""


Stage = Study | Trainer
# Told after each step; False stops there.
Report = Callable[[Stage], bool]


def run(
    adapter: TrainableAdapter,
    samples: Samples,
    base: FrozenBase,
    settings: TrainSettings,
    report: Report,
    state: TrainState | None = None,
) -> Outcome:
    """Train `adapter` in place, on from `state` if there is one."""
    notice = ""
    samples, held_out = split(samples, settings.held_out)
    if _study_is_due(settings, state):
        if samples.tells:
            study = Study(adapter, samples, base.observe, base.schedule, settings, base.share)
            if state is not None:
                study.restore(state)
            stopped = train(study, lambda _step, _error: report(study))
            state = study.state()
            if stopped:
                return Outcome(state, stopped)
        else:
            why = "the captions do not tell the pictures apart."
            notice = f"No warm start: {why}"
            logger.warning("No warm start: %s", why)
    trainer = Trainer(adapter, samples, base.predict, base.schedule, settings, held_out, base.share)
    if state is not None:
        trainer.restore(state)
    stopped = train(trainer, lambda _step, _loss: report(trainer))
    return Outcome(trainer.state(), stopped or notice)


def _study_is_due(settings: TrainSettings, state: TrainState | None) -> bool:
    """A new training has it before all else; one that goes on, only where it was in the midst."""
    if state is None:
        return settings.warm_start > 0
    return state.in_study and settings.warm_start > len(state.studied)
