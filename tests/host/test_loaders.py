"""Loader nodes on real files: presets by content, encoders of any size, the doctor's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def encoder_folder(host: Any) -> Path:
    """A tiny Hugging Face image encoder with a 32 px preprocessor, random weights."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=48,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = CLIPVisionModelWithProjection(config).half().float()
    folder = host.models("clip_vision") / "tiny"
    model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_equals_transformers(host: Any, encoder_folder: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    (encoder,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name="tiny")
    pixels = (
        torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(4)).mul(255).round() / 255
    )
    with torch.no_grad():
        output = encoder.encode_image(pixels)
        reference = CLIPVisionModelWithProjection.from_pretrained(encoder_folder)
        mean = torch.tensor([0.5] * 3)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        expected = reference((pixels - mean).div(std).movedim(-1, 1), output_hidden_states=True)
    assert torch.allclose(output.image_embeds, expected.image_embeds, atol=2e-3)
    assert torch.allclose(output.penultimate_hidden_states, expected.hidden_states[-2], atol=2e-3)


def test_the_same_file_is_opened_once(host: Any, encoder_folder: Path) -> None:
    (first,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name="tiny")
    (second,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name="tiny")
    assert first is second


def test_an_encoder_without_projection_is_refused_for_pooled_adapters(
    host: Any, encoder_folder: Path
) -> None:
    from safetensors.torch import load_file
    from support.unets import TINY_SD15, build_model, random_adapter

    state = load_file(encoder_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, host.models("clip_vision") / "headless.safetensors")
    (encoder,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name="headless.safetensors")
    checkpoint = host.module("ipadapter.checkpoint").checkpoint_from_dict(
        random_adapter(TINY_SD15, embed_dim=48), "adapter.safetensors"
    )
    adapter = host.module("ipadapter.adapter").Adapter.from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="no visual_projection.weight"):
        host.call(
            "IPAdapterAdvanced",
            model=build_model(TINY_SD15),
            ipadapter=adapter,
            image=torch.rand(1, 32, 32, 3),
            clip_vision=encoder,
        )


def test_the_doctor_reports_without_anything_loaded(host: Any) -> None:
    from support.unets import TINY_SD15, build_model

    (report,) = host.call(
        "IPAdapterDoctor", model=build_model(TINY_SD15), preset="PLUS (high strength)"
    )
    assert "MODEL" in report and "ADAPTER FILES" in report
