"""A tiny image encoder: the host's own class with seeded random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

SIZE = 32


def tiny_clip_vision(projected: int = 48, hidden: int = 64, seed: int = 5) -> Any:
    """A CLIP_VISION of 32 px pictures: 16 patches and a class token, `hidden` wide; embeds
    `projected` wide."""
    from comfy.clip_vision import ClipVisionModel

    config = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": projected,
        "model_type": "clip_vision_model",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), "utf-8")
        encoder = ClipVisionModel(str(path))
    g = torch.Generator().manual_seed(seed)
    for parameter in encoder.model.parameters():
        values = torch.randn(parameter.shape, generator=g) * 0.05
        parameter.data.copy_(values + (1.0 if parameter.ndim == 1 else 0.0))
    return encoder
