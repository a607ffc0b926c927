"""Apply nodes that look closer than one encoder input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ..apply.request import Request
from ..attention.mask import check_mask
from ..attention.weight_texts import number
from ..host.apply import run
from ..host.encode import require_picture
from ..host.preview import encoder_view
from ..pictures.tiles import Tiles, tile_image
from . import inputs
from .base import ApplyNode


def tile_masks(tiles: Tiles, mask: Tensor | None) -> Tensor:
    """Where each tile acts: its rectangle, within the attention mask of each latent
    where there is one: (tiles, masks, H, W)."""
    rectangles = tiles.masks.unsqueeze(1)
    if mask is None:
        return rectangles
    area = check_mask(mask)
    size = (int(area.shape[-2]), int(area.shape[-1]))
    return functional.interpolate(rectangles, size=size, mode="nearest") * area


def run_tiled(request: Request, sharpening: float) -> tuple[Any, Tensor, Tensor]:
    """Patch one adapter per tile that acts anywhere, each in its own part of the picture.

    Returns MODEL, tiles, masks.
    """
    tiles = tile_image(require_picture(request.image), sharpening=sharpening)
    masks = tile_masks(tiles, request.attn_mask)
    pairs = list(zip(tiles.tiles, masks, strict=True))
    acting = [(tile, mask) for tile, mask in pairs if mask.any()]
    for tile, mask in acting or pairs[:1]:  # a mask that is empty everywhere is said once
        request = replace(request, image=tile, attn_mask=mask)
        request = replace(request, model=run(request))
    return request.model, tiles.tiles.flatten(0, 1), masks.flatten(0, 1)


class IPAdapterTiled(ApplyNode):
    """The whole of a wide or tall picture, tile by tile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._tiled(
            "IPAdapterTiled",
            "IPAdapter Tiled",
            "Cuts a picture into tiles, so that wide and tall pictures keep their sides and all "
            "keep details.",
            inputs.combine_embeds(),
            *inputs.start_end(),
            cls._sharpening(),
            inputs.embeds_scaling(),
        )

    @classmethod
    def _tiled(cls, node_id: str, name: str, description: str, *given: io.Input) -> io.Schema:
        schema = cls.schema(
            node_id,
            name,
            description,
            inputs.image(),
            inputs.weight(high=3.0),
            inputs.weight_type(),
            *given,
            *inputs.negative_mask_vision(),
            category="ipadapter/tiled",
        )
        schema.outputs = [
            inputs.patched_model(),
            io.Image.Output(
                "tiles", display_name="tiles", tooltip="The tiles, as the encoder is given them."
            ),
            io.Mask.Output(
                "masks", display_name="masks", tooltip="Where each tile acts, tile by tile."
            ),
        ]
        return schema

    @classmethod
    def _sharpening(cls) -> io.Input:
        return io.Float.Input(
            "sharpening",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Sharpens the tiles. 0: off.",
        )

    @classmethod
    def execute(cls, sharpening: float = 0.0, **given: Any) -> io.NodeOutput:
        request = cls.request(**given)
        model, tiles, masks = run_tiled(request, number(sharpening, "sharpening"))
        return io.NodeOutput(model, tiles, masks, ui=encoder_view(cls, request, {"tiles": tiles}))


class IPAdapterTiledBatch(IPAdapterTiled):
    """Tiles of a picture per latent."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._tiled(
            "IPAdapterTiledBatch",
            "IPAdapter Tiled Batch",
            "IPAdapter Tiled with a picture for every latent of a batch.",
            *inputs.start_end(),
            cls._sharpening(),
            inputs.embeds_scaling(),
            inputs.encode_batch_size(),
        )


class IPAdapterClipVisionEnhancer(ApplyNode):
    """The encoder looks at enlarged parts too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._enhancer(
            "IPAdapterClipVisionEnhancer",
            "IPAdapter ClipVision Enhancer",
            "Lets the encoder look at enlarged parts of the picture too, so that fine detail comes "
            "through.",
            [inputs.combine_embeds(), *inputs.start_end(), inputs.embeds_scaling()],
            inputs.enhance(1.0),
        )

    @classmethod
    def _enhancer(
        cls,
        node_id: str,
        name: str,
        description: str,
        settings: list[io.Input],
        enhance: list[io.Input],
    ) -> io.Schema:
        return cls.schema(
            node_id,
            name,
            description,
            inputs.image(),
            inputs.weight(),
            inputs.weight_type(),
            *settings,
            *enhance,
            *inputs.negative_mask_vision(),
            category="ipadapter/dev",
        )


class IPAdapterClipVisionEnhancerBatch(IPAdapterClipVisionEnhancer):
    """The enhancer for every latent."""

    PER_ITEM = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._enhancer(
            "IPAdapterClipVisionEnhancerBatch",
            "IPAdapter ClipVision Enhancer Batch",
            "IPAdapter ClipVision Enhancer with a picture for every latent of a batch.",
            [*inputs.start_end(), inputs.embeds_scaling()],
            [*inputs.enhance(0.5), inputs.encode_batch_size()],
        )


TILED: list[type[io.ComfyNode]] = [
    IPAdapterTiled,
    IPAdapterTiledBatch,
    IPAdapterClipVisionEnhancer,
    IPAdapterClipVisionEnhancerBatch,
]
