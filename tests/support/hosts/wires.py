"""What a graph connects to an Apply node, tiny: MODEL, adapter, encoder, pictures."""

from __future__ import annotations

from typing import Any

import torch

from ..models.unets import TINY_SD15, Geometry, Pair, build_model, random_adapter
from ..models.vision import tiny_clip_vision
from ..references.parity import model_output

EMBED_DIM = 48


def random_pipeline(host: Any, geometry: Geometry = TINY_SD15) -> Any:
    """The IPADAPTER of a unified loader: a random adapter for a geometry, and a tiny encoder."""
    checkpoint = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(
        random_adapter(geometry, embed_dim=EMBED_DIM), "random adapter"
    )
    adapter = host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)
    payload = host.module("ipadapter.apply.wire")
    return payload.LoadedAdapter(adapter, tiny_clip_vision(projected=EMBED_DIM))


def tiny_wires(host: Any, pictures: int = 1) -> dict[str, Any]:
    """Inputs of an Apply node by socket name."""
    pipeline = random_pipeline(host)
    g = torch.Generator().manual_seed(1)
    return {
        "model": build_model(TINY_SD15),
        "ipadapter": pipeline.adapter,
        "clip_vision": pipeline.clip_vision,
        "image": torch.rand(pictures, 40, 56, 3, generator=g),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two MODELs of TINY_SD15 predict the same noise, bit for bit."""
    pair = Pair(TINY_SD15, reference=None, model=None)
    return torch.equal(model_output(pair, one), model_output(pair, other))
