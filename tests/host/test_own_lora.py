"""The LoRA inside a FaceID adapter lands on the weights that the reference gives it to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, TINY_SDXL, Geometry, build_model, host_config

from ipadapter.adapters.checkpoint import checkpoint_from_dict
from ipadapter.adapters.families import Family

STRENGTH = 0.6


@pytest.mark.parametrize("geometry", [TINY_SD15, TINY_SDXL], ids=lambda g: g.name)
def test_every_weight_gets_its_own_delta(host: Any, geometry: Geometry) -> None:
    import comfy.sd
    import comfy.utils
    from diffusers import UNet2DConditionModel

    base = "SDXL" if geometry.adm else "SD1.5"
    nested = synthetic_adapter(Family.FACEID, base, tiny=True, device="cpu", dtype=torch.float32)
    checkpoint = checkpoint_from_dict(nested, "faceid.bin")
    model = build_model(geometry)
    own_lora = host.module("ipadapter.adapters.lora").own_lora
    layout = host.module("ipadapter.host.bases.unet").read_layout(model)
    state = own_lora(checkpoint.ip_adapter, [layer.block for layer in layout.layers], "faceid.bin")
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    patched, _ = comfy.sd.load_lora_for_models(model, None, state, STRENGTH, 0)
    with torch.device("meta"):
        reference = UNet2DConditionModel(sample_size=geometry.latent, **geometry.diffusers)
    host_names = comfy.utils.unet_to_diffusers(host_config(geometry))
    patched.patch_model()
    after = model.model.state_dict()
    changed = set()
    for number, name in enumerate(reference.attn_processors):
        attention = name.removesuffix(".processor")
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out.0")):
            key = f"diffusion_model.{host_names[f'{attention}.to_{theirs}.weight']}"
            down, up = (
                nested["ip_adapter"][f"{number}.to_{ours}_lora.{end}.weight"]
                for end in ("down", "up")
            )
            expected = before[key] + STRENGTH * up @ down
            assert (after[key] - expected).abs().max() < 1e-5
            changed.add(key)
    assert all(torch.equal(after[key], before[key]) for key in before if key not in changed)
    patched.unpatch_model()


def test_an_adapter_without_one_and_one_that_does_not_fit(host: Any) -> None:
    own_lora = host.module("ipadapter.adapters.lora").own_lora
    layout = host.module("ipadapter.host.bases.unet").read_layout(build_model(TINY_SD15))
    blocks = [layer.block for layer in layout.layers]
    plus = checkpoint_from_dict(synthetic_adapter(Family.PLUS, "SD1.5", tiny=True), "plus.bin")
    assert own_lora(plus.ip_adapter, blocks, "plus.bin") == {}
    nested = synthetic_adapter(Family.FACEID, "SDXL", tiny=True)
    with pytest.raises(ValueError, match=r"x\.bin holds a LoRA of 1120 tensors, of which 256"):
        own_lora(checkpoint_from_dict(nested, "x.bin").ip_adapter, blocks, "x.bin")
