"""Which rows belong to the positive prompt, which part of the picture they show, and what time
it is: found out once per run and once per model call.

The host's `cond_or_uncond` misreports under SAG, PerpNeg and DualCFG, and its `uuids` repeat where
it copies a cond to match an area. So each sampling run labels the conds of the sampler's own named
lists, each batch of conds tells which list has which number, and each model call reads the labels
of its rows.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.rows import CALL_KEY, RUN_KEY, CallState, Crop, Extra, items_of
from ..attention.terms import Foreseen
from .slots import attention_is_fresh, ready, reclaim, slots_of, with_slots

logger = logging.getLogger("ipadapter")

WRAPPER_KEY = "ip_adapter"
HOOKS_KEY = "ip_adapter_hooks"
# What puts image prompts around a transformer's blocks (bases/carrier.py).
CARRIER_KEY = "ip_adapter_carrier"
# Among what a run prepares: that terms were put around blocks, and that a block ran with them.
CARRIED, ACTED = "terms were put around blocks", "a block ran with its terms"

_LEVELS = 4  # of a UNet: each halves the latents


class Label(NamedTuple):
    """What a sampler's cond is. is_cond: None where the sampler has no list called positive. area:
    (height, width, y, x) in latent pixels, or None for all."""

    is_cond: bool | None
    area: tuple[int, int, int, int] | None = None


@dataclass(eq=False)
class RunState:
    """One sampling run.

    labels: by cond id. size: height and width of the whole latents. percent_to_sigma: the noise
    schedule of the MODEL that samples. prepared: device copies of keys and values. numbers: of the
    batch of conds that is being evaluated, the number (`cond_or_uncond`) of each cond id; main: the
    sigmas of the last batch with listed conds; extra: whether the present batch is another one of
    the same step. called: whether the model's own call was used.
    """

    labels: Mapping[Any, Label]
    size: tuple[int, int]
    percent_to_sigma: Callable[[float], float]
    prepared: dict[Any, Any] = field(default_factory=dict)
    numbers: dict[Any, int] = field(default_factory=dict)
    main: Tensor | None = None
    extra: bool = False
    called: bool = False

    def begin_batch(self, conds: Sequence[Iterable[Mapping[str, Any]] | None], sigmas: Any) -> None:
        """Note the numbers of a batch of conds, before the host evaluates it."""
        ids = [(entry.get("uuid"), n) for n, given in enumerate(conds) for entry in given or ()]
        self.numbers = dict(ids)
        if any(key in self.labels for key, _ in ids):
            self.main, self.extra = sigmas, False
        else:
            self.extra = self.main is sigmas

    def chunk_labels(self, ids: Sequence[Any], numbers: Sequence[int]) -> list[Label]:
        """What each chunk of a call is. ids, numbers: the host's `uuids` and `cond_or_uncond`.

        A wrapper that reorders or splits the chunks often leaves the ids as they were: where they
        name the same conds in another order, or are not as many, the numbers decide. A wrapper
        that makes several calls of one chunk each with the whole call's numbers cannot be told
        from a batch of that size.
        """
        known = [self.numbers.get(key, -1) for key in ids]
        stale = len(ids) != len(numbers) or (
            -1 not in known and known != list(numbers) and sorted(known) == sorted(numbers)
        )
        if stale:
            return [self._by_number(number) for number in numbers]
        return [self._by_id(key, number) for key, number in zip(ids, numbers, strict=True)]

    def _by_id(self, key: Any, number: int) -> Label:
        label = self.labels.get(key)
        if label is None:
            # A cond of no list, evaluated after the step's own ones, is an extra pass, as PerpNeg's
            # empty prompt: no positive prompt.
            return Label(number == 0 and not self.extra)
        return label._replace(is_cond=number == 0) if label.is_cond is None else label

    def _by_number(self, number: int) -> Label:
        found = {self._by_id(key, n) for key, n in self.numbers.items() if n == number}
        if len(found) == 1:
            return found.pop()
        kinds = {label.is_cond for label in found}
        return Label(kinds.pop() if len(kinds) == 1 else number == 0)

    def crop(self, label: Label, height: int, width: int) -> tuple[Crop | None, bool]:
        """The part of the picture that latents of this size show, and whether it is known."""
        full_height, full_width = self.size
        if label.area is None:  # a sampler may enlarge the whole picture on its way
            return None, height >= full_height and width >= full_width
        y, x = label.area[2:]
        tall, wide = min(label.area[0], full_height - y), min(label.area[1], full_width - x)
        if (height, width) != (tall, wide):
            return None, False
        if (tall, wide) == self.size:
            return None, True
        top, left = y / full_height, x / full_width
        return Crop(top, left, (y + tall) / full_height, (x + wide) / full_width), True

    def call_state(self, options: Extra, rows: int) -> CallState:
        """The state of one model call. rows: that the model, or a block, is given.

        Reads nothing from the device.
        """
        sigmas: Tensor | None = options.get("sigmas")
        numbers = options.get("cond_or_uncond") or (0,)
        labels = self.chunk_labels(options.get("uuids") or (), numbers)
        height, width = (options.get("original_shape") or self.size)[-2:]
        crops = [self.crop(label, height, width) for label in labels]
        return CallState(
            tuple(bool(label.is_cond) for label in labels),
            items_of(options, _chunk(options, rows)),
            batch=rows,
            sigmas=sigmas,
            crops=tuple(crop for crop, _ in crops),
            placed=all(known for _, known in crops),
            prepared=self.prepared,
            percent_to_sigma=self.percent_to_sigma,
            fresh=attention_is_fresh(options),
        )

    def __deepcopy__(self, memo: dict) -> RunState:
        """One state per run, however often the host copies its options."""
        return self


def _chunk(options: Extra, rows: int) -> int:
    """Rows of one chunk: as many as the host gave noise levels."""
    sigmas: Tensor | None = options.get("sigmas")
    numbers = options.get("cond_or_uncond") or (0,)
    return max(rows // len(numbers), 1) if sigmas is None else sigmas.numel()


def label_conds(
    conds: Mapping[str, Iterable[MutableMapping[str, Any]] | None],
) -> dict[Any, Label]:
    """Give every cond of a sampler an id of its own; map it to whether its list is the
    positive one, and to its area.

    Conds that the host copied to match an area carry the id of the positive they were copied from.
    """
    labels: dict[Any, Label] = {}
    named = "positive" in conds
    for name, entries in conds.items():
        for entry in entries or ():
            if entry.get("uuid") is None or entry["uuid"] in labels:
                entry["uuid"] = uuid.uuid4()
            area = tuple(entry.get("area") or ())
            is_cond = name == "positive" if named else None
            labels[entry["uuid"]] = Label(is_cond, area if len(area) == 4 else None)
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
    sampling = guider.model_patcher.get_model_object("model_sampling")
    size = (noise.shape[-2], noise.shape[-1])
    run = RunState(label_conds(guider.conds), size, sampling.percent_to_sigma)
    model_options = extra_args["model_options"]  # the host's copy, for this run only
    options = {**model_options.get("transformer_options", {}), RUN_KEY: run}
    ours = guider.model_patcher.get_attachment(WRAPPER_KEY)
    if ours:
        options = with_slots(options, reclaim(slots_of(options), ours))
    model_options["transformer_options"] = options
    try:
        out = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        if CARRIED in run.prepared and ACTED not in run.prepared:
            logger.warning(
                "The image prompt did nothing in this sampling: another pack runs the blocks of %s "
                "itself and goes past ComfyUI's slots for them, as some caching and quantising "
                "packs do. Remove that pack's node.",
                type(guider.model_patcher.get_model_object("diffusion_model")).__name__,
            )
        return out
    finally:
        run.prepared.clear()
        if not run.called and _has_hooks(guider.conds):
            _warn_bypassed(model_options)


def _has_hooks(conds: Mapping[str, Iterable[Mapping[str, Any]] | None]) -> bool:
    """Whether a cond carries an image prompt of its own."""
    groups = [entry.get("hooks") for entries in conds.values() for entry in entries or ()]
    return any(
        getattr(hook, "is_image_prompt", False)
        for group in groups
        for hook in getattr(group, "hooks", ())
    )


def _warn_bypassed(model_options: Mapping[str, Any]) -> None:
    wrapper = model_options.get("model_function_wrapper")
    name = getattr(wrapper, "__qualname__", type(wrapper).__name__)
    where = getattr(wrapper, "__module__", None) or type(wrapper).__module__
    logger.warning(
        "IPAdapter Hook did nothing in this sampling: another node (%s of %s) runs the model "
        "itself and goes past the host's hooks. Remove that node, or use an IPAdapter node on the "
        "MODEL instead.",
        name,
        where,
    )


def _label_batch(
    executor: Any, model: Any, conds: Any, x_in: Tensor, timestep: Any, options: Any
) -> Any:
    """CALC_COND_BATCH wrapper: which list has which number in this batch."""
    run: RunState | None = options.get("transformer_options", {}).get(RUN_KEY)
    if run is not None:
        run.begin_batch(conds, timestep)
    return executor(model, conds, x_in, timestep, options)


# What the host's apply_model takes after the latents, in order; other packs' wrappers may name it.
_APPLY_MODEL = ("t", "c_concat", "c_crossattn", "control", "transformer_options")
_OPTIONS = _APPLY_MODEL.index("transformer_options")


def _label_call(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """APPLY_MODEL wrapper: what is the same for all blocks of this call."""
    given = [*args, *(kwargs.pop(name, None) for name in _APPLY_MODEL[len(args) :])]
    options = dict(given[_OPTIONS] or {})
    call = options[CALL_KEY] = _call_state(options, x, executor)
    for hooked in options.pop(HOOKS_KEY, ()):
        options = hooked(options)
    model = getattr(executor, "class_obj", None)
    if slots := slots_of(options):
        options = with_slots(options, ready(slots, call, _foreseen(model, x)))
    given[_OPTIONS] = options
    if (carrier := options.get(CARRIER_KEY)) is None:
        return executor(x, *given, **kwargs)
    return _carried(carrier, executor, x, given, kwargs)


def _carried(carrier: Any, executor: Any, x: Tensor, given: list[Any], kwargs: Any) -> Any:
    """A call of a transformer, with image prompts around its blocks."""
    model, options = getattr(executor, "class_obj", None), given[_OPTIONS]
    network = getattr(model, "diffusion_model", None)
    carried = carrier.carried(options, network, x, compute_dtype(model, x))
    if carried is None:
        return executor(x, *given, **kwargs)
    given[_OPTIONS] = carried.options
    try:
        return executor(x, *given, **kwargs)
    finally:
        carried.report(options[CALL_KEY].prepared)


def _foreseen(model: Any, latents: Tensor) -> Foreseen:
    """What the queries of a UNet's blocks will be. latents: that the model is given."""
    grids, (height, width) = [], latents.shape[-2:]
    for _ in range(_LEVELS):
        grids.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    return Foreseen(latents.shape[0], latents.device, compute_dtype(model, latents), grids)


def compute_dtype(model: Any, latents: Tensor) -> torch.dtype:
    """What a model computes in."""
    told = getattr(model, "get_dtype_inference", None) or getattr(model, "get_dtype", None)
    cast = getattr(model, "manual_cast_dtype", None)
    return cast or (latents.dtype if told is None else told())


def _call_state(options: Mapping[str, Any], x: Tensor, executor: Any) -> CallState:
    """x: the latents that the model is given. Without a run, the model that is called tells its
    noise schedule, and the host's numbers which chunk is which."""
    run: RunState | None = options.get(RUN_KEY)
    if run is not None:
        run.called = True
        return run.call_state({**options, "original_shape": x.shape}, x.shape[0])
    sampling = getattr(getattr(executor, "class_obj", None), "model_sampling", None)
    return CallState(
        tuple(number == 0 for number in options.get("cond_or_uncond") or (0,)),
        items_of(options, _chunk(options, x.shape[0])),
        batch=x.shape[0],
        sigmas=options.get("sigmas"),
        percent_to_sigma=getattr(sampling, "percent_to_sigma", None),
        fresh=attention_is_fresh(options),
    )


WRAPPERS = (
    (WrappersMP.SAMPLER_SAMPLE, _label_run),
    (WrappersMP.CALC_COND_BATCH, _label_batch),
    (WrappersMP.APPLY_MODEL, _label_call),
)


def add_wrappers(model: ModelPatcher) -> None:
    """Register the wrappers once, however many adapters a MODEL carries."""
    for kind, wrapper in WRAPPERS:
        if not model.get_wrappers(kind, WRAPPER_KEY):
            model.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper)
