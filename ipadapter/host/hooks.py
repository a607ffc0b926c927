"""An image prompt on some of the prompts only: a hook for the host's conditioning nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.hooks
import comfy.patcher_extension
from comfy.model_patcher import ModelPatcher

from ..attention.injection import Injection
from ..bases.layout import Layer
from .bases.install import with_injections
from .bases.modules import managed, modules_of
from .sampling import HOOKS_KEY, WRAPPER_KEY, WRAPPERS


class ImagePromptHook(comfy.hooks.TransformerOptionsHook):
    """Adds an image prompt to the model calls of the conds that carry it,
    at its keyframes' strength.

    The host drops a hook's patches where the MODEL holds the same slot, so this one brings none: it
    puts a function among the options of its conds' calls, which chains over whatever holds the
    slots by then.
    """

    is_image_prompt = True

    def __init__(self, injections: Mapping[Layer, Injection] | None = None) -> None:
        super().__init__(transformers_dict={}, hook_scope=comfy.hooks.EnumHookScope.HookedOnly)
        self.injections = injections or {}

    def clone(self) -> ImagePromptHook:
        """A copy that follows its own keyframes."""
        copied = super().clone()
        copied.injections = self.injections
        return copied

    def add_hook_patches(
        self, model: Any, model_options: Any, target_dict: Any, registered: Any
    ) -> bool:
        """Register for a run; the MODEL may carry no adapter of its own, so bring the wrappers."""
        if not super().add_hook_patches(model, model_options, target_dict, registered):
            return False
        for kind, wrapper in WRAPPERS:
            arguments = (kind, WRAPPER_KEY, model_options, True)
            if not comfy.patcher_extension.get_wrappers_with_key(*arguments):
                comfy.patcher_extension.add_wrapper_with_key(
                    kind, WRAPPER_KEY, wrapper, model_options, is_model_options=True
                )
        return True

    def on_apply_hooks(self, _model: ModelPatcher, transformer_options: dict[str, Any]) -> None:
        """Called for each group of conds that carries this hook, before its model calls."""
        strength = float(self.strength)
        if strength:
            patched = partial(_patched, self.injections, strength)
            transformer_options.setdefault(HOOKS_KEY, []).append(patched)


def _patched(
    injections: Mapping[Layer, Injection], strength: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Transformer options of one model call, with an image prompt on top."""
    scaled = {layer: one.with_strength(strength) for layer, one in injections.items()}
    return with_injections(options, scaled)


def hook_group(
    injections: Mapping[Layer, Injection], before: comfy.hooks.HookGroup | None = None
) -> comfy.hooks.HookGroup:
    """HOOKS with an image prompt, after other hooks. The given group stays as it is."""
    group = comfy.hooks.HookGroup() if before is None else before.clone()
    group.add(ImagePromptHook(injections))
    if modules := modules_of(injections):
        group.add(comfy.hooks.AdditionalModelsHook(managed(modules), WRAPPER_KEY))
    return group
