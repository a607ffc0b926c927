"""Putting a ready prompt into a MODEL, past pictures and encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Modules = Callable[[str], Any]  # name of a pack module under `ipadapter` -> module


def injected(
    core: Modules, model: Any, adapter: Any, prompt: Any, weighting: Any, **when: Any
) -> Any:
    """What a prompt adds to each layer of a MODEL. when: fields of an ApplyRange."""
    layout = core("host.bases.install").layout_of(model)
    layout = adapter.layers_in(layout)
    apply = core("host.apply")
    given = (model, layout, adapter, prompt, weighting)
    return apply.fold_into(*given, apply.ApplyRange(**when))


def applied(
    core: Modules, model: Any, adapter: Any, prompt: Any, weighting: Any, **when: Any
) -> Any:
    """A patched clone of a MODEL."""
    injections = injected(core, model, adapter, prompt, weighting, **when)
    return core("host.bases.install").install(model, injections)
