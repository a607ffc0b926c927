"""Image prompts for the host's conditioning hooks: a picture that belongs to one prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..apply.request import Request
from ..host.apply import injections_of
from ..host.hooks import hook_group
from ..host.preview import request_view
from . import inputs


class IPAdapterHook(io.ComfyNode):
    """A picture for one prompt only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAdapterHook",
            display_name="IPAdapter Hook",
            category="ipadapter/hooks",
            description="Puts a picture on one prompt instead of the whole MODEL: connect HOOKS to "
            "Cond Pair Set Props, for regions, schedules and keyframed strength.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL that will sample. It is read, not patched: connect the "
                    "sampler to the same checkpoint.",
                ),
                inputs.ipadapter(),
                inputs.image(),
                inputs.weight(),
                inputs.weight_type(),
                inputs.combine_embeds(),
                *inputs.start_end(),
                inputs.embeds_scaling(),
                *inputs.negative_mask_vision(),
                inputs.insightface(),
                inputs.image_mask(),
                io.Hooks.Input(
                    "prev_hooks", optional=True, tooltip="Hooks that act beside this one."
                ),
            ],
            outputs=[
                io.Hooks.Output(
                    display_name="HOOKS",
                    tooltip="For Cond Pair Set Props and Set Hook Keyframes. On both prompts of "
                    "the pair it acts as on the MODEL; on the positive alone, only there.",
                )
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, prev_hooks: Any = None, **given: Any) -> io.NodeOutput:
        """Make the hook, and show what the encoder was given."""
        request = Request(**given)
        hooks = hook_group(injections_of(request), prev_hooks)
        return io.NodeOutput(hooks, ui=request_view(cls, request))


HOOKS: list[type[io.ComfyNode]] = [IPAdapterHook]
