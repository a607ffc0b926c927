"""What the Apply nodes share: their inputs are the fields of a Request, and executing is one
call."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io

from ..host.apply import run
from ..host.request import Request
from . import inputs

# Argument order of the Python method that other packs call on these classes, partly by position.
_POSITIONAL = (
    "model",
    "ipadapter",
    "start_at",
    "end_at",
    "weight",
    "weight_style",
    "weight_composition",
    "expand_style",
    "weight_type",
    "combine_embeds",
    "weight_faceidv2",
    "image",
    "image_style",
    "image_composition",
    "image_negative",
    "clip_vision",
    "attn_mask",
    "insightface",
    "embeds_scaling",
    "layer_weights",
    "ipadapter_params",
    "encode_batch_size",
    "style_boost",
    "composition_boost",
    "enhance_tiles",
    "enhance_ratio",
    "weight_kolors",
)


class ApplyNode(io.ComfyNode):
    """Base of the nodes that patch a MODEL with an image prompt."""

    PER_ITEM: ClassVar[bool] = False
    """True for the batch nodes: picture i belongs to latent i."""

    @classmethod
    def schema(
        cls,
        node_id: str,
        display_name: str,
        description: str,
        *given: io.Input,
        category: str = "ipadapter",
    ) -> io.Schema:
        """The schema of a node with these inputs after `model` and `ipadapter`, and a MODEL
        output."""
        return io.Schema(
            node_id=node_id,
            display_name=display_name,
            category=category,
            description=description,
            inputs=[inputs.model(), inputs.ipadapter(), *given],
            outputs=[inputs.patched_model()],
        )

    @classmethod
    def request(cls, **given: Any) -> Request:
        """The node's inputs as a Request."""
        return Request(**given, per_item=cls.PER_ITEM)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        """Patch the MODEL."""
        return io.NodeOutput(run(cls.request(**given)))

    @classmethod
    def apply_ipadapter(cls, *values: Any, **given: Any) -> tuple[Any, ...]:
        """Call the node from Python, as other packs do: the de facto method, name and argument
        order."""
        given = {**dict(zip(_POSITIONAL, values, strict=False)), **given}
        ignored = {name for name, value in given.items() if value is None}
        return tuple(cls.execute(**{name: given[name] for name in given.keys() - ignored}).args)
