"""Image encoders that adapters were trained with, and which of their outputs a projector reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional


class EmbedSource(str, Enum):
    """What a projector takes."""

    POOLED = "image_embeds"
    HIDDEN = "penultimate_hidden_states"
    FACE = "face embedding"
    FACE_AND_HIDDEN = "face embedding and penultimate_hidden_states"

    @property
    def reads_face(self) -> bool:
        """Whether a face embedding is part of it."""
        return self in (EmbedSource.FACE, EmbedSource.FACE_AND_HIDDEN)

    @property
    def reads_picture(self) -> bool:
        """Whether an image encoder's output is part of it."""
        return self is not EmbedSource.FACE

    @property
    def output(self) -> EmbedSource:
        """The encoder output that is part of it: POOLED or HIDDEN."""
        return EmbedSource.POOLED if self is EmbedSource.POOLED else EmbedSource.HIDDEN


@dataclass(frozen=True)
class EncoderKind:
    """An image encoder that adapters were trained with."""

    name: str
    hidden: int
    projected: int
    image_size: int
    patch: int = 14
    class_token: bool = True

    @property
    def patches(self) -> int:
        """Tokens of the hidden states, the class token included."""
        return (self.image_size // self.patch) ** 2 + self.class_token

    def width(self, source: EmbedSource) -> int:
        """Width of what a projector with this source gets."""
        return self.projected if source.output is EmbedSource.POOLED else self.hidden


VIT_H = EncoderKind("ViT-H", 1280, 1024, 224)
VIT_BIGG = EncoderKind("ViT-bigG", 1664, 1280, 224)
VIT_L_336 = EncoderKind("ViT-L/14 at 336 px", 1024, 768, 336)
VIT_L = EncoderKind("ViT-L/14", 1024, 768, 224)
SIGLIP = EncoderKind("SigLIP so400m", 1152, 1152, 384, class_token=False)
ENCODERS = (VIT_H, VIT_BIGG, VIT_L_336, VIT_L, SIGLIP)


def encoder_name(source: EmbedSource, width: int) -> str:
    """Encoder and width for messages, such as "ViT-H (1280)"."""
    for kind in ENCODERS:
        if width == kind.width(source):
            return f"{kind.name} ({width})"
    return f"an image encoder with {source.output.value} of width {width}"


def resized_positions(table: Tensor, side: int, leading: int) -> Tensor:
    """An encoder's position embeddings for a grid of side x side patches.

    table: (leading + patches, width), those of the class token first. Bicubic from corner to
    corner, as adapters for larger pictures were trained with it (torchvision's
    `interpolate_embeddings`).
    https://github.com/pytorch/vision/blob/v0.26.0/torchvision/models/vision_transformer.py#L789
    """
    before = math.isqrt(len(table) - leading)
    grid = table[leading:].float().T.reshape(1, -1, before, before)
    resized = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=True)
    return torch.cat([table[:leading], resized[0].flatten(1).T.to(table.dtype)])
