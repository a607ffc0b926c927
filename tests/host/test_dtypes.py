"""The same prompt on MODELs of every precision: half, quantised, dequantised as it runs, and
loaded in part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.hosts.scene import STEPS, Scene
from support.models.unets import (
    TINY_SD15,
    build_model,
    build_reference,
    host_config,
    host_unet,
    patcher,
)
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
BLOCK = 32  # weights that share a scale
HALF_LIMIT = torch.finfo(torch.float16).max
VISIBLE = 1e-3
# Stored as, computed in, and the largest difference to fp32, relative to the largest latent.
PRECISIONS = {
    "fp32": (torch.float32, None, 1e-6),
    "fp16": (torch.float16, None, 0.01),
    "bf16": (torch.bfloat16, None, 0.1),
    "fp8 cast to fp32": (FP8, torch.float32, 1e-6),
    "fp8 cast to fp16": (FP8, torch.float16, 0.01),
    "fp8 cast to bf16": (FP8, torch.bfloat16, 0.1),
}


@pytest.fixture(scope="module")
def scene(host: Any) -> Scene:
    return Scene.build(host, TINY_SD15)


def model_of(scene: Scene, stored: torch.dtype, computed: torch.dtype | None) -> Any:
    """The scene's network with its weights in another precision, as the host's loaders make it."""
    config = {**host_config(TINY_SD15), "dtype": stored}
    unet = host_unet(config, "meta")
    weights = scene.model.model.diffusion_model.state_dict().items()
    unet.load_state_dict({name: weight.to(stored) for name, weight in weights}, assign=True)
    model = patcher(unet, config)
    model.model.manual_cast_dtype = computed
    return model


def exact(scene: Scene, stored: torch.dtype) -> Scene:
    """The scene in fp32 with the weights that remain after rounding to `stored`."""
    if stored is not FP8:
        return scene
    state = {n: w.to(FP8).float() for n, w in build_reference(TINY_SD15).state_dict().items()}
    return replace(scene, model=build_model(TINY_SD15, state))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.abs().max())


@pytest.fixture
def seen(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """(result, query, ip_key, ip_value) of every image attention of the test."""
    module = scene.host.module("ipadapter.attention.terms")
    real, calls = module.add_image_attention, []

    def spy(
        base: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> Tensor:
        result = real(base, query, key, value, *args, **kw)
        calls.append((result, query, key, value))
        return result

    monkeypatch.setattr(module, "add_image_attention", spy)
    return calls


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_gives_what_fp32_gives(
    scene: Scene,
    seen: list,
    precision: str,
    record_property: Any,
) -> None:
    stored, computed, tolerance = PRECISIONS[precision]
    reference = exact(scene, stored)
    expected, plain = reference.sample(reference.apply()), reference.sample()
    seen.clear()
    model = model_of(scene, stored, computed)
    result = scene.sample(scene.apply(model))
    far = difference(result, expected)
    record_property("measured", f"a MODEL in {precision}: {far:.1e} from fp32")
    assert far < tolerance
    assert difference(expected, plain) > VISIBLE
    assert torch.equal(scene.sample(scene.apply(model, weight=0.0)), scene.sample(model))
    assert len(seen) == STEPS * TINY_SD15.layers
    assert {tensor.dtype for call in seen for tensor in call} == {computed or stored}


def test_the_ends_of_the_weights_fit_half_precision(
    scene: Scene, seen: list, record_property: Any
) -> None:
    model = model_of(scene, torch.float16, None)
    largest = 0.0
    for scaling in ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"):
        for weight in (-1.0, 5.0):
            seen.clear()
            applied = scene.apply(model, weight=weight, embeds_scaling=scaling)
            assert torch.isfinite(scene.sample(applied, cfg=8.0)).all()
            tensors = [tensor for call in seen for tensor in call]
            assert tensors and all(torch.isfinite(tensor).all() for tensor in tensors)
            largest = max(largest, *(float(tensor.abs().max()) for tensor in tensors))
    headroom = HALF_LIMIT / largest
    record_property("measured", f"fp16 for weights -1 to 5: headroom {headroom:.0f} times")
    assert headroom > 100


class DequantisingLinear(nn.Module):
    """A stand-in for the linear layers of GGUF loaders: bytes in blocks of 32 weights and a scale,
    made whole for each call. Its `weight` has neither the shape nor the precision of a weight."""

    comfy_cast_weights = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        blocks = linear.weight.detach().float().view(self.out_features, -1, BLOCK)
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
        numbers = (blocks / scale.float().clamp(min=1e-8)).round().clamp(-127, 127).to(torch.int8)
        packed = torch.cat((numbers.view(torch.uint8), scale.view(torch.uint8)), -1).flatten(1)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        """(out, in), fp32."""
        blocks = self.weight.view(self.out_features, -1, BLOCK + 2)
        scale = blocks[..., BLOCK:].contiguous().view(torch.float16).float()
        numbers = blocks[..., :BLOCK].contiguous().view(torch.int8)
        return (numbers * scale).reshape(self.out_features, self.in_features)

    def forward(self, rows: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(rows.dtype)
        return nn.functional.linear(rows, self.dequantised().to(rows.dtype), bias)


def quantised(unet: nn.Module) -> Iterator[DequantisingLinear]:
    """Replace the linear layers of a UNet's attention in place."""
    for name, linear in list(unet.named_modules()):
        if isinstance(linear, nn.Linear) and "transformer_blocks" in name:
            parent, _, child = name.rpartition(".")
            made = DequantisingLinear(linear)
            setattr(unet.get_submodule(parent), child, made)
            yield made


@pytest.mark.parametrize("computed", [torch.float32, torch.float16], ids=str)
def test_layers_that_dequantise_as_they_run(
    scene: Scene, seen: list, computed: torch.dtype
) -> None:
    model = model_of(scene, computed, None)
    layers = list(quantised(model.model.diffusion_model))
    assert len(layers) > 8 * TINY_SD15.layers
    assert all(layer.weight.dtype is torch.uint8 for layer in layers)
    applied = scene.apply(model)
    result = scene.sample(applied)
    assert {tensor.dtype for call in seen for tensor in call} == {computed}
    assert len(seen) == STEPS * TINY_SD15.layers
    assert difference(result, scene.sample(scene.apply())) < 0.1
    assert difference(result, scene.sample(model)) > VISIBLE


def test_a_model_loaded_in_part(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's way with --novram: every weight is fetched when its layer runs."""
    import comfy.model_management as management

    expected = scene.sample(scene.apply())
    model = model_of(scene, torch.float32, None)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    result = scene.sample(scene.apply(model))
    assert model.model.model_lowvram
    assert torch.equal(result, expected)
