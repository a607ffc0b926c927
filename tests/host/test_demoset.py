"""The demo model set: what is stored narrow is, written wide, the same function in the host."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def demoset() -> ModuleType:
    """The package `scripts/demoset` with its modules imported."""
    import demoset.build
    import demoset.training.measure

    return demoset


@pytest.fixture(scope="module")
def models(demoset: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the whole set."""
    out = tmp_path_factory.mktemp("demoset")
    demoset.build.build(out)
    return out


@pytest.fixture(scope="module")
def base(demoset: ModuleType, host: Any, models: Path) -> Any:
    """The checkpoint as the host's loader gives it."""
    return demoset.training.measure.load_base(models / demoset.build.CHECKPOINT)


def test_wide_unet_is_the_narrow_one(demoset: ModuleType, host: Any) -> None:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from tools.random_models import UNET

    narrow = demoset.models.narrow
    state, widths = narrow.load(demoset.build.WEIGHTS / "unet.safetensors")
    small = narrow.NarrowUNet(widths)
    small.load_state_dict(state)
    wide = UNetModel(**UNET, device="cpu")
    wide.load_state_dict(narrow.widen(state, widths))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    context = torch.randn(2, 77, 768, generator=generator)
    timesteps = torch.tensor([30.0, 800.0])
    with torch.inference_mode():
        difference = small(latents, timesteps, context) - wide(latents, timesteps, context)
    assert difference.abs().max() < 1e-4


def test_text_features_are_the_hosts(demoset: ModuleType, base: Any) -> None:
    captions = ["a red circle on a blue background", ""]
    ours = demoset.models.text.TextFeatures(demoset.host.tokenizer())(captions)
    for caption, features in zip(captions, ours, strict=True):
        with torch.inference_mode():
            theirs = base.clip.encode_from_tokens_scheduled(base.clip.tokenize(caption))[0][0]
        torch.testing.assert_close(features, theirs[0], atol=1e-4, rtol=0)


def test_host_vae_gives_the_latents_of_training(demoset: ModuleType, base: Any) -> None:
    images = demoset.world.scenes.batch(3, 0, 2).images
    narrow = demoset.models.vae.load(demoset.build.WEIGHTS / "vae.safetensors")
    latents = base.vae.encode(images.movedim(1, -1))
    seen = base.model.model.process_latent_in(latents)
    torch.testing.assert_close(seen, narrow.encode(images), atol=1e-3, rtol=1e-3)
    decoded = base.vae.decode(latents).movedim(-1, 1)
    assert (decoded - images).abs().mean() < 0.05


def test_hosts_encoder_is_transformers(demoset: ModuleType, host: Any, models: Path) -> None:
    import comfy.clip_vision
    import comfy.utils

    folder = models / demoset.build.ENCODER
    vision = comfy.clip_vision.ClipVisionModel(str(folder / "config.json"))
    missing, unexpected = vision.load_sd(
        comfy.utils.load_torch_file(str(folder / "model.safetensors"))
    )
    assert not missing and not unexpected
    images = (demoset.world.scenes.batch(4, 0, 3).images * 255).round() / 255
    with torch.inference_mode():
        theirs = vision.encode_image(images.movedim(1, -1))
    tools = demoset.models.encoder
    encoder = tools.load(demoset.build.WEIGHTS / "encoder.safetensors")
    ours = encoder(pixel_values=tools.preprocess(images), output_hidden_states=True)
    torch.testing.assert_close(theirs["image_embeds"], ours.image_embeds, atol=0.05, rtol=0.05)
    hidden = theirs["penultimate_hidden_states"]
    torch.testing.assert_close(hidden, ours.hidden_states[-2], atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_colours_follow_captions(demoset: ModuleType, base: Any) -> None:
    asked = demoset.training.measure.wishes(12)
    with torch.inference_mode():
        told = base.sample([wish.caption for wish in asked], seed=1000)
        untold = base.sample([""] * len(asked), seed=1000)
    judge = demoset.training.measure.judge
    with_captions, without = (judge(images, asked) for images in (told, untold))
    for figure in ("background error", "object colour error"):
        assert with_captions[figure] < 0.8 * without[figure], figure
