"""Which rows belong to the positive prompt, which part of the picture they show, and what time it
is: found out once per run and once per model call.

The host's `cond_or_uncond` misreports under SAG, PerpNeg and DualCFG, and its `uuids` repeat where
it copies a cond to match an area. So each sampling run labels the conds of the sampler's own named
lists, and each model call reads the labels of its rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.rows import CALL_KEY, CallState, Crop, items_of
from .slots import reclaim, slots_of, with_slots

WRAPPER_KEY = "ip_adapter"
RUN_KEY = "ip_adapter_run"
HOOKS_KEY = "ip_adapter_hooks"


class Label(NamedTuple):
    """What a sampler's cond is. area: (height, width, y, x) in latent pixels, or None for all."""

    is_cond: bool
    area: tuple[int, int, int, int] | None = None


@dataclass(eq=False)
class RunState:
    """One sampling run.

    labels: by cond id. size: height and width of the whole latents. prepared: device copies of keys
    and values. prompted: the sigmas tensor of the last call that held a labelled positive cond.
    """

    labels: Mapping[Any, Label]
    size: tuple[int, int]
    prepared: dict[Any, Any] = field(default_factory=dict)
    prompted: Tensor | None = None

    def label(self, key: Any, index: int, sigmas: Tensor | None) -> Label:
        """Label of one chunk of a call. index: the host's `cond_or_uncond`, which decides for conds
        that the sampler does not list.

        An unlisted cond that is evaluated by itself (so as number 0) after the positive ones of the
        same step is an extra pass, as PerpNeg's empty prompt: no positive prompt.
        """
        label = self.labels.get(key)
        if label is not None:
            if label.is_cond:
                self.prompted = sigmas
            return label
        return Label(index == 0 and (sigmas is None or self.prompted is not sigmas))

    def crop(self, label: Label, height: int, width: int) -> tuple[Crop | None, bool]:
        """The part of the picture that latents of this size show, and whether it is known."""
        full_height, full_width = self.size
        if label.area is None:
            return None, (height, width) == self.size
        y, x = label.area[2:]
        tall, wide = min(label.area[0], full_height - y), min(label.area[1], full_width - x)
        if (height, width) != (tall, wide):
            return None, False
        if (tall, wide) == self.size:
            return None, True
        top, left = y / full_height, x / full_width
        return Crop(top, left, (y + tall) / full_height, (x + wide) / full_width), True

    def __deepcopy__(self, memo: dict) -> RunState:
        """One state per run, however often the host copies its options."""
        return self


def label_conds(
    conds: Mapping[str, Iterable[MutableMapping[str, Any]] | None],
) -> dict[Any, Label]:
    """Give every cond of a sampler an id of its own; map it to whether its list is the positive
    one, and to its area.

    Conds that the host copied to match an area carry the id of the positive they were copied from.
    """
    labels: dict[Any, Label] = {}
    for name, entries in conds.items():
        for entry in entries or ():
            if entry.get("uuid") is None or entry["uuid"] in labels:
                entry["uuid"] = uuid.uuid4()
            area = tuple(entry.get("area") or ())
            labels[entry["uuid"]] = Label(name == "positive", area if len(area) == 4 else None)
    return labels


def _label_run(
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """SAMPLER_SAMPLE wrapper: start a run's state."""
    run = RunState(label_conds(guider.conds), (noise.shape[-2], noise.shape[-1]))
    model_options = extra_args["model_options"]  # the host's copy, for this run only
    options = {**model_options.get("transformer_options", {}), RUN_KEY: run}
    ours = guider.model_patcher.get_attachment(WRAPPER_KEY)
    if ours:
        options = with_slots(options, reclaim(slots_of(options), ours))
    model_options["transformer_options"] = options
    try:
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    finally:
        run.prepared.clear()


# What the host's apply_model takes after the latents, in order; other packs' wrappers may name it.
_APPLY_MODEL = ("t", "c_concat", "c_crossattn", "control", "transformer_options")
_OPTIONS = _APPLY_MODEL.index("transformer_options")


def _label_call(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """APPLY_MODEL wrapper: what is the same for all blocks of this call."""
    given = [*args, *(kwargs.pop(name, None) for name in _APPLY_MODEL[len(args) :])]
    options = dict(given[_OPTIONS] or {})
    options[CALL_KEY] = call_state(options, x)
    for hooked in options.pop(HOOKS_KEY, ()):
        options = hooked(options)
    given[_OPTIONS] = options
    return executor(x, *given, **kwargs)


def call_state(options: Mapping[str, Any], x: Tensor) -> CallState:
    """Labels, latents and places of one model call's rows. x: the latents that the model is given.

    Reads nothing from the device.
    """
    run: RunState | None = options.get(RUN_KEY)
    sigmas: Tensor | None = options.get("sigmas")
    indices = options.get("cond_or_uncond") or (0,)
    ids = options.get("uuids") or ()
    if run is None or len(ids) != len(indices):
        ids = (None,) * len(indices)
    chunk = max(x.shape[0] // len(indices), 1) if sigmas is None else sigmas.numel()
    state = {"items": items_of(options, chunk), "batch": x.shape[0], "sigmas": sigmas}
    if run is None:
        return CallState(tuple(index == 0 for index in indices), **state)
    labels = [run.label(key, index, sigmas) for key, index in zip(ids, indices, strict=True)]
    crops = [run.crop(label, x.shape[-2], x.shape[-1]) for label in labels]
    return CallState(
        tuple(label.is_cond for label in labels),
        **state,
        crops=tuple(crop for crop, _ in crops),
        placed=all(known for _, known in crops),
        prepared=run.prepared,
    )


WRAPPERS = ((WrappersMP.SAMPLER_SAMPLE, _label_run), (WrappersMP.APPLY_MODEL, _label_call))


def add_wrappers(model: ModelPatcher) -> None:
    """Register the wrappers once, however many adapters a MODEL carries."""
    for kind, wrapper in WRAPPERS:
        if not model.get_wrappers(kind, WRAPPER_KEY):
            model.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper)
