"""Table of contents: every node of the pack, and how the host finds them.

Each node is a schema and one call; they lie in ipadapter/nodes, by subject. Node ids, input names,
their order and value strings are the de facto ones, so that shared workflows run unchanged; they
never change.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .ipadapter.host import loaders
from .ipadapter.host.registry import unclaimed
from .ipadapter.nodes.apply import APPLY
from .ipadapter.nodes.compat.of_2023 import OF_2023
from .ipadapter.nodes.compat.old_prompts import accept_old_prompts
from .ipadapter.nodes.compat.python_calls import add_python_calls
from .ipadapter.nodes.compat.search_words import add_search_aliases
from .ipadapter.nodes.compat.v2_fork import v2_fork
from .ipadapter.nodes.embeds import EMBEDS
from .ipadapter.nodes.faces import FACES
from .ipadapter.nodes.frames import WEIGHTS
from .ipadapter.nodes.hooks import HOOKS
from .ipadapter.nodes.images import IMAGES
from .ipadapter.nodes.loaders import LOADERS
from .ipadapter.nodes.maps import MAPS
from .ipadapter.nodes.regions import REGIONAL
from .ipadapter.nodes.style import STYLE
from .ipadapter.nodes.tiles import TILED
from .ipadapter.nodes.training import TRAINING

NODES: list[type[io.ComfyNode]] = [
    *LOADERS,
    *APPLY,
    *STYLE,
    *TILED,
    *EMBEDS,
    *FACES,
    *REGIONAL,
    *HOOKS,
    *IMAGES,
    *WEIGHTS,
    *MAPS,
    *TRAINING,
]
# For old files and other packs' prompts; the menu does not show them.
HIDDEN = [*OF_2023, *v2_fork(NODES)]


class Pack(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return unclaimed([*NODES, *HIDDEN])


async def comfy_entrypoint() -> Pack:
    """The host's entry point."""
    loaders.register_folders()
    add_search_aliases(NODES)
    add_python_calls([*NODES, *OF_2023])
    accept_old_prompts([*NODES, *HIDDEN])
    return Pack()
