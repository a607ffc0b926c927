"""What the Apply nodes share: their inputs are the fields of a Request, and
executing is one call."""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io

from ..apply.request import Request
from ..attention.weight_texts import number
from ..attention.weight_types import WeightType
from ..host.apply import run
from ..host.preview import request_view
from . import inputs

# In `validate_inputs`: nothing is linked to an input of that name. (A link's value is None there.)
ABSENT = object()
# A boost makes a type precise: these inputs belong to the Precise nodes, and to callers that give
# them to any node.
_BOOSTS = {
    "style_boost": WeightType.STYLE_PRECISE,
    "composition_boost": WeightType.COMPOSITION_PRECISE,
}


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
        """The schema of a node with these inputs after `model` and `ipadapter`,
        and a MODEL output."""
        return io.Schema(
            node_id=node_id,
            display_name=display_name,
            category=category,
            description=description,
            inputs=[inputs.model(), inputs.ipadapter(), *given],
            outputs=[inputs.patched_model()],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def request(cls, **given: Any) -> Request:
        """The node's inputs as a Request."""
        for name, kind in _BOOSTS.items():
            boost = given.pop(name, None)
            if boost is not None:
                given |= {"boost": number(boost, name), "weight_type": kind.value}
        return Request(**given, per_item=cls.PER_ITEM)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        """Patch the MODEL, and show what the encoder was given."""
        request = cls.request(**given)
        return io.NodeOutput(run(request), ui=request_view(cls, request))
