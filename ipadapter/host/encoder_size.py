"""An image encoder for pictures of another size: the same weights, other position embeddings.

The encoder that is given stays as it is: the copy is a clone of its patcher, which puts the
embeddings in place when the host loads it and takes them out again before the original runs.
"""

from __future__ import annotations

import copy
from typing import Any

import comfy.ops
import torch
from comfy.clip_vision import ClipVisionModel

from ..adapters.vision import resized_positions
from ..errors import Problem
from .encoders import is_siglip

_POSITIONS = "vision_model.embeddings.position_embedding"
_ORIGINAL = "image_prompt_original"  # on a copy: the encoder that it was made from


def original(clip_vision: Any) -> Any:
    """The encoder that a copy of another size was made from; the encoder itself if it is none."""
    return getattr(clip_vision, _ORIGINAL, clip_vision)


def resized_encoder(clip_vision: Any, size: int) -> Any:
    """The encoder for square pictures of `size` pixels; itself where that is its own size.

    ValueError if it is no CLIP or SigLIP encoder, or if its patches do not fill the size.
    """
    source = original(clip_vision)
    vision = getattr(getattr(source, "model", None), "vision_model", None)
    if not isinstance(source, ClipVisionModel) or vision is None:
        raise Problem.WRONG_INPUT(
            f"clip_vision: only CLIP and SigLIP encoders can take another size, this is "
            f"{type(getattr(source, 'model', source)).__name__}. Load one of those with Load CLIP "
            "Vision or IPAdapter Image Encoder Loader."
        )
    if size == source.image_size:
        return source
    patch = int(vision.embeddings.patch_embedding.kernel_size[0])
    if size < patch or size % patch:
        below = max(size // patch, 1) * patch
        raise Problem.BAD_VALUE(
            f"size: {size} px is not filled by this encoder's patches of {patch} px. Choose "
            f"{below} or {below + patch}, or {source.image_size}, which is its own."
        )
    return _copy(source, size, size // patch)


def _copy(source: ClipVisionModel, size: int, side: int) -> ClipVisionModel:
    # Asked of the patcher: a copy may have its own in the shared network just now.
    table = source.patcher.get_model_object(_POSITIONS).weight.detach()
    positions = resized_positions(table, side, leading=0 if is_siglip(source) else 1)
    module = comfy.ops.manual_cast.Embedding(*positions.shape, device=torch.device("meta"))
    module.weight = torch.nn.Parameter(positions, requires_grad=False)
    resized = copy.copy(source)
    resized.patcher = source.patcher.clone()
    resized.patcher.add_object_patch(_POSITIONS, module)
    resized.image_size = size
    setattr(resized, _ORIGINAL, source)
    return resized
