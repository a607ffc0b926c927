"""Loader nodes on real files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.models.encoders import SMALL, clip, random_weights


def test_an_encoder_without_projection_is_refused_for_pooled_adapters(host: Any) -> None:
    from support.models.unets import TINY_SD15, build_model, random_adapter

    state = random_weights(clip({**SMALL, "projection_dim": 48}))
    del state["visual_projection.weight"]
    save_file(state, host.models("clip_vision") / "headless.safetensors")
    (encoder,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name="headless.safetensors")
    checkpoint = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict(
        random_adapter(TINY_SD15, embed_dim=48), "adapter.safetensors"
    )
    adapter = host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="no visual_projection.weight"):
        host.call(
            "IPAdapterAdvanced",
            model=build_model(TINY_SD15),
            ipadapter=adapter,
            image=torch.rand(1, 32, 32, 3),
            clip_vision=encoder,
        )


def test_the_doctor_reports_without_anything_loaded(host: Any) -> None:
    from support.models.unets import TINY_SD15, build_model

    (report,) = host.call(
        "IPAdapterDoctor", model=build_model(TINY_SD15), preset="PLUS (high strength)"
    )
    assert "MODEL" in report and "ADAPTER FILES" in report
