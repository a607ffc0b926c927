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


def pack_model(pair: Any, case: Any, core: Modules) -> Any:
    """The host's MODEL with a case's adapters, of `references.parity` or of
    `references.transformers` alike."""
    model = pair.model
    for state, weight, cond, uncond in zip(
        case.adapters, case.weights, case.cond, case.uncond, strict=True
    ):
        checkpoint = core("adapters.checkpoint").checkpoint_from_dict(state, "random adapter")
        adapter = core("adapters.adapter").Adapter.from_checkpoint(checkpoint)
        prompt = core("adapters.prompt")
        image = prompt.ImagePrompt(
            prompt.concat(adapter.tokens(cond)), adapter.tokens(uncond), images=len(cond)
        )
        layers = None if isinstance(weight, (int, float)) else dict(enumerate(weight))
        first = weight if isinstance(weight, (int, float)) else 1.0
        weighting = core("attention.weight_types").Weighting((first,), layers=layers)
        model = applied(core, model, adapter, image, weighting, mask=case.mask)
    return model
