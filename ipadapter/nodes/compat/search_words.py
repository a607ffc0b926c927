"""Words under which people look for a node, for hosts whose search knows them (0.18 does)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields

from comfy_api.latest import io

_ALL = ("image prompt", "reference picture", "reference image", "ip adapter", "ipa")
_STYLE = ("style", "style transfer", "instantstyle")
_FACE = ("face id", "insightface", "identity", "portrait")
_EMBEDS = ("image embeds", "clip vision embeds")
_REGION = ("regional prompt", "attention couple", "area")
_FRAMES = ("animation", "video", "keyframes", "schedule")
_CROP = ("crop", "square", "resize for clip")
ALIASES: dict[str, tuple[str, ...]] = {
    "IPAdapter": _STYLE,
    "IPAdapterAdvanced": _STYLE,
    "IPAdapterAttentionMap": ("heat map", "attention"),
    "IPAdapterBatch": _FRAMES,
    "IPAdapterCombineEmbeds": _EMBEDS,
    "IPAdapterCombineParams": _REGION,
    "IPAdapterDoctor": ("diagnosis", "which file", "missing model"),
    "IPAdapterEmbeds": _EMBEDS,
    "IPAdapterEncoder": _EMBEDS,
    "IPAdapterFaceID": _FACE,
    "IPAdapterFaceIDKolors": _FACE,
    "IPAdapterFromParams": _REGION,
    "IPAdapterImageEncoderSize": ("448", "resolution", "position embedding", "noobai"),
    "IPAdapterHook": ("conditioning hook", "one prompt"),
    "IPAdapterInsightFaceLoader": _FACE,
    "IPAdapterMS": ("layer weights", "block weights"),
    "IPAdapterNoise": ("negative image",),
    "IPAdapterPreciseComposition": ("layout",),
    "IPAdapterPreciseStyleTransfer": _STYLE,
    "IPAdapterRecordAttention": ("heat map", "attention"),
    "IPAdapterRegionalConditioning": _REGION,
    "IPAdapterStyleComposition": ("layout", *_STYLE),
    "IPAdapterTiled": ("wide picture", "tall picture", "panorama"),
    "IPAdapterTrain": ("training", "fine-tune"),
    "IPAdapterUnifiedLoader": ("preset", *_STYLE),
    "IPAdapterUnifiedLoaderFaceID": _FACE,
    "IPAdapterWeights": _FRAMES,
    "PrepImageForClipVision": _CROP,
}


def add_search_aliases(classes: Iterable[type[io.ComfyNode]]) -> None:
    """Let every node's schema carry its words; nothing on hosts whose schemas have no place."""
    if "search_aliases" not in {field.name for field in fields(io.Schema)}:
        return
    for node in classes:
        define = node.define_schema
        node.define_schema = classmethod(_with_words(define))  # pyright: ignore


def _with_words(
    define: Callable[[], io.Schema],
) -> Callable[[type[io.ComfyNode]], io.Schema]:
    def define_schema(_node: type[io.ComfyNode]) -> io.Schema:
        schema = define()
        words = [*_ALL, *ALIASES.get(schema.node_id, ())]
        schema.search_aliases = words  # pyright: ignore[reportAttributeAccessIssue]
        return schema

    return define_schema
