"""Train an adapter on a MODEL, and write it where the loaders find it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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
from PIL import Image
from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.families import Family
from ...adapters.vision import EmbedSource
from ...errors import Problem
from ...files.layouts import xlabs_name
from ...training.curve import loss_curve, study_curve
from ...training.data import TrainingSet
from ...training.flow import Spread
from ...training.folder import write_adapter, write_state
from ...training.portability import portability_note
from ...training.recipe import TrainSettings
from ...training.run import FrozenBase, Outcome, Stage, run
from ...training.state import TrainedAdapter, TrainState, state_of, trained_adapter
from ...training.store import StoredSet
from ...training.trainable import ProjectorPlan, TrainableAdapter, family_in, training_of
from ...training.trainer import Trainer
from ..encode import require_head
from ..loaders import ADAPTERS
from .data import TrainingInputs, training_set
from .frozen import Frozen, Precision, frozen_base
from .memory import check_fits, need_of
from .schedule import schedule_of
from .stored import can_be_stored, stored_set

logger = logging.getLogger("ipadapter")

_PREVIEW_SECONDS = 2.0


@dataclass(frozen=True)
class Recipe:
    """What to train and how; device and dtype of the settings follow from the MODEL. spread: of
    the noise levels, where the MODEL predicts a flow."""

    family: Family = Family.STANDARD
    num_tokens: int = 0
    precision: Precision = Precision.AUTO
    checkpointing: bool = False
    spread: Spread = Spread.LOGIT_NORMAL
    settings: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Refuse families before anything is computed."""
        training_of(self.family)


@dataclass(frozen=True, eq=False)
class Training:
    """An adapter as it left its training. notice: why it stopped early, or nothing."""

    adapter: TrainedAdapter
    state: TrainState
    steps: int
    warm_start: int = 0
    notice: str = ""

    def curve(self) -> Tensor:
        """(1, height, width, 3), 0..1"""
        state = self.state
        if state.in_study:
            drawn = study_curve(state.studied.tolist(), self.warm_start, self.notice)
        else:
            compared = state.compared.tolist()
            judged = state.validated.tolist()
            drawn = loss_curve(state.losses.tolist(), compared, self.steps, self.notice, judged)
        picture = np.asarray(drawn)
        return torch.from_numpy(picture.copy()).float().div(255).unsqueeze(0)


def train_adapter(
    model: ModelPatcher,
    clip_vision: Any,
    sources: TrainingInputs,
    recipe: Recipe,
    resume: Adapter | None = None,
    watch: Callable[[Stage], None] = lambda _stage: None,
) -> Training:
    """Train, until the steps are done or the user interrupts. watch: sees every step."""
    family = recipe.family if resume is None else resume.spec.family
    state = None if resume is None else state_of(resume)
    if resume is not None and state is None:
        logger.warning("%s has no training state: its weights are a new start.", resume.name)
        # They have learned already, so a warm start would only forget.
        recipe = replace(recipe, settings=replace(recipe.settings, warm_start=0))
    schedule = schedule_of(model, recipe.spread)
    data = _samples(model, clip_vision, family.row.reads, sources)
    shape = (recipe.settings.batch_size, *data.latent_shape)
    with frozen_base(model, recipe.precision, shape, recipe.checkpointing) as frozen:
        settings = replace(recipe.settings, device=frozen.device, dtype=frozen.dtype)
        adapter = _adapter(frozen, data, recipe, resume)
        need = need_of(frozen, adapter, settings, data.latent_shape, recipe.checkpointing)
        check_fits(need, frozen, recipe.checkpointing)
        base = FrozenBase(frozen.predict, frozen.observe, schedule, sources.share)
        outcome = run(adapter, data, base, settings, _Report(settings, state, watch), state)
    return _finished(outcome, recipe, frozen)


def _samples(
    model: ModelPatcher, clip_vision: Any, source: EmbedSource, sources: TrainingInputs
) -> TrainingSet | StoredSet:
    """Everything that does not change while an adapter trains."""
    if clip_vision is None:
        raise Problem.WRONG_FILE(
            "clip_vision is empty: the file that its loader opened is no image encoder. Choose a "
            "CLIP vision model."
        )
    require_head(clip_vision, source, "Training with this family")
    if sources.store is None or not can_be_stored(sources):
        return training_set(model, clip_vision, source, sources)
    found = stored_set(model, clip_vision, source, sources, sources.store)
    comfy.model_management.unload_all_models()  # the encoders have done their work
    return found


def _adapter(
    base: Frozen, data: TrainingSet | StoredSet, recipe: Recipe, resume: Adapter | None
) -> TrainableAdapter:
    """A new adapter, or the one to go on with."""
    width = data.feature_width
    if resume is None:
        generator = torch.Generator().manual_seed(recipe.settings.seed)
        family = family_in(recipe.family, base.wiring, base.layout.name)
        plan = ProjectorPlan(family, width, base.token_dim, recipe.num_tokens)
        if note := portability_note(plan.family, plan.tokens):
            logger.warning("The new adapter: %s", note)
        return TrainableAdapter.begun(plan, base.layers(), generator)
    spec = resume.spec
    spec.layers_in(base.layout).check(
        spec.layer_widths, spec.token_dim, resume.name, spec.base_name
    )
    if width != spec.embed_dim:
        raise Problem.WRONG_ENCODER(
            f"{resume.name} was trained with {spec.encoder_name}, this CLIP_VISION gives width "
            f"{width}: connect the same encoder."
        )
    return TrainableAdapter.from_adapter(resume)


class _Report:
    """Progress bar, preview of the loss, and whether to go on."""

    def __init__(
        self, settings: TrainSettings, state: TrainState | None, watch: Callable[[Stage], None]
    ) -> None:
        self.watch = watch
        studied = 0 if state is None else len(state.studied)
        self.before = max(studied, settings.warm_start if state is None or state.in_study else 0)
        self.total = self.before + settings.steps
        self.bar = comfy.utils.ProgressBar(self.total)
        self.shown = time.monotonic()

    def __call__(self, stage: Stage) -> bool:
        preview = None
        if time.monotonic() - self.shown > _PREVIEW_SECONDS:
            self.shown = time.monotonic()
            preview = ("JPEG", _picture(stage), None)
        done = stage.steps + (self.before if isinstance(stage, Trainer) else 0)
        self.bar.update_absolute(done, self.total, preview)
        self.watch(stage)
        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            return False
        return True


def _picture(stage: Stage) -> Image.Image:
    if isinstance(stage, Trainer):
        return loss_curve(stage.losses, stage.compared, stage.total, validated=stage.validated)
    return study_curve(stage.errors, stage.total)


def _finished(outcome: Outcome, recipe: Recipe, base: Frozen) -> Training:
    settings, state = recipe.settings, outcome.state
    name = f"adapter trained for {state.steps} steps"
    details = {
        "steps": str(state.steps),
        "batch_size": str(settings.batch_size * settings.accumulation),
        "learning_rate": f"{settings.learning_rate:g}",
        "warm_start": str(len(state.studied)),
        "loss_weighting": settings.counts.value,
        "seed": str(settings.seed),
        "precision": str(base.dtype).removeprefix("torch."),
        "trained_on": base.layout.name,
    }
    adapter = trained_adapter(state, name, details)
    if outcome.notice:
        logger.warning("%s The output is the adapter as of step %d.", outcome.notice, state.steps)
    return Training(adapter, state, settings.steps, settings.warm_start, outcome.notice)


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
    if spec.family is Family.FLUX_XLABS:  # so that other programs know it
        tensors = {xlabs_name(key): tensor for key, tensor in tensors.items()}
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
