"""Train an adapter on a MODEL, and write it where the loaders find it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.families import Family
from ...errors import Problem
from ...training.curve import loss_curve
from ...training.data import TrainingSet
from ...training.folder import write_adapter, write_state
from ...training.portability import portability_note
from ...training.recipe import TrainSettings
from ...training.state import TrainedAdapter, TrainState, state_of, trained_adapter
from ...training.trainable import ProjectorPlan, TrainableAdapter, training_of
from ...training.trainer import Trainer, train
from ..loaders import ADAPTERS
from .data import TrainingInputs, training_set
from .frozen_unet import FrozenUNet, Precision, frozen_unet, schedule_of

logger = logging.getLogger("ipadapter")

_PREVIEW_SECONDS = 2.0


@dataclass(frozen=True)
class Recipe:
    """What to train and how; device and dtype of the settings follow from the MODEL."""

    family: Family = Family.STANDARD
    num_tokens: int = 0
    precision: Precision = Precision.AUTO
    settings: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Refuse families before anything is computed."""
        training_of(self.family)


@dataclass(frozen=True, eq=False)
class Training:
    """An adapter as it left its training. notice: why it stopped early, or nothing."""

    adapter: TrainedAdapter
    steps: int
    notice: str = ""

    def curve(self) -> Tensor:
        """(1, height, width, 3), 0..1"""
        state = self.adapter.training
        losses = [] if state is None else state.losses.tolist()
        compared = [] if state is None else state.compared.tolist()
        picture = np.asarray(loss_curve(losses, compared, self.steps, self.notice))
        return torch.from_numpy(picture.copy()).float().div(255).unsqueeze(0)


def train_adapter(
    model: ModelPatcher,
    clip_vision: Any,
    sources: TrainingInputs,
    recipe: Recipe,
    resume: Adapter | None = None,
) -> Training:
    """Train, until the steps are done or the user interrupts."""
    family = recipe.family if resume is None else resume.spec.family
    state = None if resume is None else state_of(resume)
    if resume is not None and state is None:
        logger.warning("%s has no training state: its weights are a new start.", resume.name)
    schedule = schedule_of(model)
    data = training_set(model, clip_vision, family.row.reads, sources)
    shape = (recipe.settings.batch_size, *data.latent_shape)
    with frozen_unet(model, recipe.precision, shape) as unet:
        settings = replace(recipe.settings, device=unet.device, dtype=unet.dtype)
        adapter = _adapter(unet, data, recipe, resume)
        trainer = Trainer(adapter, data, unet.predict, schedule, settings)
        if state is not None:
            trainer.restore(state)
        stopped = train(trainer, _Report(trainer))
        state = trainer.state()
    return _finished(state, recipe, stopped, unet)


def _adapter(
    unet: FrozenUNet, data: TrainingSet, recipe: Recipe, resume: Adapter | None
) -> TrainableAdapter:
    """A new adapter, or the one to go on with."""
    width = data.features.shape[-1]
    if resume is None:
        generator = torch.Generator().manual_seed(recipe.settings.seed)
        plan = ProjectorPlan(recipe.family, width, unet.layout.context_dim, recipe.num_tokens)
        if note := portability_note(plan.family, plan.tokens):
            logger.warning("The new adapter: %s", note)
        return TrainableAdapter.create(plan, unet.text_weights(), generator)
    spec = resume.spec
    unet.layout.check(spec.layer_widths, spec.token_dim, resume.name, spec.base_name)
    if width != spec.embed_dim:
        raise Problem.WRONG_ENCODER(
            f"{resume.name} was trained with {spec.encoder_name}, this CLIP_VISION gives width "
            f"{width}: connect the same encoder."
        )
    return TrainableAdapter.from_adapter(resume)


class _Report:
    """Progress bar, preview of the loss, and whether to go on."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.bar = comfy.utils.ProgressBar(trainer.settings.steps)
        self.shown = time.monotonic()

    def __call__(self, step: int, _loss: float) -> bool:
        total, preview = self.trainer.settings.steps, None
        if time.monotonic() - self.shown > _PREVIEW_SECONDS:
            self.shown = time.monotonic()
            preview = ("JPEG", loss_curve(self.trainer.losses, self.trainer.compared, total), None)
        self.bar.update_absolute(step, total, preview)
        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            return False
        return True


def _finished(state: TrainState, recipe: Recipe, stopped: str | None, unet: FrozenUNet) -> Training:
    settings = recipe.settings
    name = f"adapter trained for {state.steps} steps"
    details = {
        "steps": str(state.steps),
        "batch_size": str(settings.batch_size * settings.accumulation),
        "learning_rate": f"{settings.learning_rate:g}",
        "seed": str(settings.seed),
        "precision": str(unet.dtype).removeprefix("torch."),
    }
    adapter = trained_adapter(state, name, details)
    if stopped:
        logger.warning("%s The output is the adapter as of step %d.", stopped, state.steps)
    return Training(adapter, settings.steps, stopped or "")


@dataclass(frozen=True)
class Saved:
    """A written adapter. note: who cannot read it, or nothing."""

    path: Path
    note: str


def save_adapter(
    adapter: Adapter, stem: Path, dtype: torch.dtype, with_state: bool = False
) -> Saved:
    """Write an adapter in the standard layout under a new numbered name.

    with_state: also write, beside it, what going on with its training needs.
    """
    checkpoint, spec = adapter.checkpoint, adapter.spec
    halves = {"image_proj": checkpoint.image_proj, "ip_adapter": checkpoint.ip_adapter}
    tensors = {
        f"{half}.{key}": held[key].to(dtype) for half, held in halves.items() for key in held
    }
    facts = {
        "family": spec.family.value,
        "base": spec.base_name,
        "encoder": spec.encoder_name,
        "num_tokens": str(spec.num_tokens),
    }
    note = portability_note(spec.family, spec.num_tokens, checkpoint.image_proj.shapes())
    if note:
        facts["note"] = note
    path = write_adapter(stem, tensors, {**checkpoint.metadata, **facts})
    if note:
        logger.warning("%s: %s", path.name, note)
    state = state_of(adapter) if with_state else None
    if state is not None:
        write_state(path, state.tensors())
    return Saved(path, note)


class Folder(str, Enum):
    """Where adapters may be written, as the node shows it."""

    MODELS = "models/ipadapter"
    OUTPUT = "output"


def save_roots() -> dict[Folder, Path]:
    """The paths of the folders."""
    return {
        Folder.MODELS: Path(folder_paths.get_folder_paths(ADAPTERS)[0]),
        Folder.OUTPUT: Path(folder_paths.get_output_directory()),
    }
