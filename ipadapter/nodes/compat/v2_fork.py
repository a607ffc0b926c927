"""The ids of a fork that named every node anew with "V2" at the end, its inputs unchanged.

Each is the node that its workflows mean, under the other id, hidden from the menu.
"""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

# The node classes that the fork has, which are called as their ids; it knows none of later ones.
FORKED = frozenset(
    {
        "IPAdapter",
        "IPAdapterAdvanced",
        "IPAdapterBatch",
        "IPAdapterFaceID",
        "IPAdapterFaceIDKolors",
        "IPAAdapterFaceIDBatch",
        "IPAdapterTiled",
        "IPAdapterTiledBatch",
        "IPAdapterEmbeds",
        "IPAdapterEmbedsBatch",
        "IPAdapterStyleComposition",
        "IPAdapterStyleCompositionBatch",
        "IPAdapterMS",
        "IPAdapterClipVisionEnhancer",
        "IPAdapterClipVisionEnhancerBatch",
        "IPAdapterFromParams",
        "IPAdapterPreciseStyleTransfer",
        "IPAdapterPreciseComposition",
        "IPAdapterPreciseStyleTransferBatch",
        "IPAdapterPreciseCompositionBatch",
        "IPAdapterUnifiedLoader",
        "IPAdapterUnifiedLoaderFaceID",
        "IPAdapterUnifiedLoaderCommunity",
        "IPAdapterModelLoader",
        "IPAdapterInsightFaceLoader",
        "IPAdapterEncoder",
        "IPAdapterCombineEmbeds",
        "IPAdapterNoise",
        "PrepImageForClipVision",
        "IPAdapterSaveEmbeds",
        "IPAdapterLoadEmbeds",
        "IPAdapterWeights",
        "IPAdapterWeightsFromStrategy",
        "IPAdapterPromptScheduleFromWeightsStrategy",
        "IPAdapterCombineWeights",
        "IPAdapterRegionalConditioning",
        "IPAdapterCombineParams",
    }
)


def v2_fork(nodes: Sequence[type[io.ComfyNode]]) -> list[type[io.ComfyNode]]:
    """The second ids of those of `nodes` that the fork has."""
    return [_alias(node) for node in nodes if node.__name__ in FORKED]


def _alias(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    def define_schema(_alias: type[io.ComfyNode]) -> io.Schema:
        schema = node.define_schema()
        schema.description = f"For workflows of the V2 fork. Here: {schema.display_name}."
        schema.node_id, schema.display_name = f"{schema.node_id}V2", f"{schema.display_name} V2"
        schema.is_deprecated = True
        return schema

    return type(f"{node.__name__}V2", (node,), {"define_schema": classmethod(define_schema)})
