"""The ids of a fork that named every node anew with "V2" at the end, its inputs unchanged.

Each is the node that its workflows mean, under the other id, hidden from the menu.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..apply import APPLY
from ..embeds import EMBEDS
from ..faces import FACES
from ..frames import WEIGHTS
from ..images import IMAGES
from ..loaders import (
    IPAdapterModelLoader,
    IPAdapterUnifiedLoader,
    IPAdapterUnifiedLoaderCommunity,
)
from ..regions import REGIONAL
from ..style import STYLE
from ..tiles import TILED

_LOADERS = (IPAdapterModelLoader, IPAdapterUnifiedLoader, IPAdapterUnifiedLoaderCommunity)
_FORKED = (*_LOADERS, *APPLY, *STYLE, *TILED, *EMBEDS, *FACES, *REGIONAL, *IMAGES, *WEIGHTS)


def _alias(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    def define_schema(_alias: type[io.ComfyNode]) -> io.Schema:
        schema = node.define_schema()
        schema.description = f"For workflows of the V2 fork. Here: {schema.display_name}."
        schema.node_id, schema.display_name = f"{schema.node_id}V2", f"{schema.display_name} V2"
        schema.is_deprecated = True
        return schema

    return type(f"{node.__name__}V2", (node,), {"define_schema": classmethod(define_schema)})


V2_FORK: list[type[io.ComfyNode]] = [_alias(node) for node in _FORKED]
