"""Which rows belong to the positive prompt, and what time it is: found out once per run and once
per model call.

The host's `cond_or_uncond` misreports under SAG, PerpNeg and DualCFG, and its `uuids` repeat where
it copies a cond to match an area. So each sampling run labels the conds of the sampler's own named
lists, and each model call reads the labels of its rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..patch import CALL_KEY, AttentionPatch, CallState, items_of, sigma_of

WRAPPER_KEY = "ip_adapter"
RUN_KEY = "ip_adapter_run"


@dataclass(frozen=True, eq=False)
class RunState:
    """One sampling run: which conds are the positive prompt, and device copies of keys and
    values."""

    is_cond: Mapping[Any, bool]
    prepared: dict[Any, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> RunState:
        """One state per run, however often the host copies its options."""
        return self


def label_conds(conds: Mapping[str, Iterable[dict[str, Any]] | None]) -> dict[Any, bool]:
    """Give every cond of a sampler an id of its own; map it to whether its list is the positive
    one.

    Conds that the host copied to match an area carry the id of the positive they were copied from.
    """
    labels: dict[Any, bool] = {}
    for name, entries in conds.items():
        for entry in entries or ():
            if entry.get("uuid") is None or entry["uuid"] in labels:
                entry["uuid"] = uuid.uuid4()
            labels[entry["uuid"]] = name == "positive"
    return labels


def _label_run(
    executor: Any, guider: Any, sigmas: Any, extra_args: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """SAMPLER_SAMPLE wrapper: start a run's state."""
    options = extra_args["model_options"]
    run = RunState(label_conds(guider.conds))
    options["transformer_options"] = {**options.get("transformer_options", {}), RUN_KEY: run}
    try:
        return executor(guider, sigmas, extra_args, *args, **kwargs)
    finally:
        run.prepared.clear()


def _label_call(
    executor: Any,
    x: Any,
    t: Any,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """APPLY_MODEL wrapper: what is the same for all blocks of this call."""
    options = dict(transformer_options or {})
    options[CALL_KEY] = call_state(options, x.shape[0])
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def call_state(options: Mapping[str, Any], rows: int) -> CallState:
    """Labels, latents and sigma of one model call; the only place where sigma is read from the
    device."""
    run: RunState | None = options.get(RUN_KEY)
    chunks = options.get("cond_or_uncond") or (0,)
    labels = run.is_cond if run is not None else {}
    ids = options.get("uuids") or (None,) * len(chunks)
    flags = tuple(labels.get(key, index == 0) for key, index in zip(ids, chunks, strict=False))
    sigmas = options.get("sigmas")
    chunk = sigmas.shape[0] if sigmas is not None else max(rows // len(chunks), 1)
    return CallState(
        flags,
        items_of(options, chunk),
        sigma_of(options) if _asks_for_sigma(options) else None,
        run.prepared if run is not None else {},
    )


def _asks_for_sigma(options: Mapping[str, Any]) -> bool:
    slots = options.get("patches_replace", {}).get("attn2", {})
    return any(
        patch.asks_for_sigma for patch in slots.values() if isinstance(patch, AttentionPatch)
    )


def add_wrappers(model: ModelPatcher) -> None:
    """Register the wrappers once, however many adapters a MODEL carries."""
    for kind, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, _label_run),
        (WrappersMP.APPLY_MODEL, _label_call),
    ):
        if not model.get_wrappers(kind, WRAPPER_KEY):
            model.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper)
