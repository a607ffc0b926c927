"""The Apply nodes through the host: they run, and each setting reaches the patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.wires import tiny_wires

APPLY = {
    "IPAdapterTiled": {"image": "image"},
    "IPAdapterTiledBatch": {"image": "image"},
    "IPAdapterClipVisionEnhancer": {"image": "image"},
    "IPAdapterClipVisionEnhancerBatch": {"image": "image"},
    "IPAdapterMS": {"image": "image"},
    "IPAdapterAdvanced": {"image": "image"},
    "IPAdapterBatch": {"image": "image"},
    "IPAdapterStyleComposition": {"image_style": "image", "image_composition": "image"},
    "IPAdapterStyleCompositionBatch": {"image_style": "image", "image_composition": "image"},
    "IPAdapterPreciseStyleTransfer": {"image": "image"},
    "IPAdapterPreciseStyleTransferBatch": {"image": "image"},
    "IPAdapterPreciseComposition": {"image": "image"},
    "IPAdapterPreciseCompositionBatch": {"image": "image"},
}


@pytest.fixture(scope="module")
def wires(host: Any) -> dict[str, Any]:
    """What a graph would connect: MODEL, adapter, encoder, pictures."""
    return tiny_wires(host, pictures=2)


@pytest.mark.parametrize("node_id", APPLY)
def test_apply_nodes_patch_a_copy(host: Any, wires: dict[str, Any], node_id: str) -> None:
    pictures = {name: wires[wire] for name, wire in APPLY[node_id].items()}
    common = {name: wires[name] for name in ("model", "ipadapter", "clip_vision")}
    patched, *_ = host.call(node_id, **common, **pictures)
    assert patched is not wires["model"]
    assert patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert "patches_replace" not in wires["model"].model_options["transformer_options"]


def test_saved_embeds_know_their_adapter(host: Any, wires: dict[str, Any]) -> None:
    given = {name: wires[name] for name in ("ipadapter", "clip_vision", "image")}
    positive, negative = host.call("IPAdapterEncoder", **given, weight=0.5)
    assert positive.made_for.digest == wires["ipadapter"].digest != ""
    host.call("IPAdapterSaveEmbeds", embeds=positive, filename_prefix="mine")
    (loaded,) = host.call("IPAdapterLoadEmbeds", embeds="mine_00001_.ipadpt.safetensors")
    assert torch.equal(loaded.features, positive.features)
    assert loaded.made_for == positive.made_for and loaded.weight == 0.5
    (patched,) = host.call(
        "IPAdapterEmbeds",
        model=wires["model"],
        ipadapter=wires["ipadapter"],
        pos_embed=loaded,
        neg_embed=negative,
    )
    assert patched.model_options["transformer_options"]["patches_replace"]["attn2"]
