"""What does not go together on transformers is said at the node, by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from support.hosts.scene import Scene
from support.models import transformers
from support.models.transformer_adapters import instantx, sd3, xlabs
from support.models.transformers import TINY_CHROMA, TINY_FLUX, TINY_SD3
from support.models.unets import TINY_SD15
from support.references.interface import defaults
from torch import Tensor

# Bases of the host for which no adapter is known, and the class of their network.
UNKNOWN = {
    "QwenImage": "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",
    "Lumina2": "comfy.ldm.lumina.model.NextDiT",
    "WAN21": "comfy.ldm.wan.model.WanModel",
    "HiDream": "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",
    "PixArt": "comfy.ldm.pixart.pixartms.PixArtMS",
    "CosmosVideo": "comfy.ldm.cosmos.model.GeneralDIT",
    "HunyuanDiT": "comfy.ldm.hydit.models.HunYuanDiT",
    "AuraFlow": "comfy.ldm.aura.mmdit.MMDiT",
    "LTXV": "comfy.ldm.lightricks.model.LTXVModel",
    "Omnigen2": "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel",
    "HunyuanVideo": "comfy.ldm.hunyuan_video.model.HunyuanVideo",
}


def hollow(base: str, network: str) -> Any:
    """A MODEL of the host's own classes, without their layers."""
    import comfy.model_base
    import comfy.model_patcher

    place, _, name = network.rpartition(".")

    def made(kind: Any) -> Any:
        one = kind.__new__(kind)
        torch.nn.Module.__init__(one)
        return one

    model = made(getattr(comfy.model_base, base))
    model.diffusion_model = made(getattr(import_module(place), name))
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def scenes(host: Any) -> dict[str, Scene]:
    made = {
        "Flux": (TINY_FLUX, xlabs),
        "Flux, InstantX": (TINY_FLUX, instantx),
        "SD3.5": (TINY_SD3, sd3),
    }
    found = {
        name: Scene.of_transformer(host, geometry, file(geometry))
        for name, (geometry, file) in made.items()
    }
    return {**found, "UNet": Scene.build(host, TINY_SD15)}


def refused(call: Callable[[], object], *said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    message = str(caught.value)
    assert all(part in message for part in said), message


@pytest.mark.parametrize("base", UNKNOWN)
def test_a_base_without_adapters_is_named(scenes: dict[str, Scene], base: str) -> None:
    model = hollow(base, UNKNOWN[base])
    said = f"This MODEL is {base} ({UNKNOWN[base].rpartition('.')[2]})"
    refused(lambda: scenes["Flux"].apply(model), said, "Flux.1, Chroma, SD3.5 or Cosmos-Predict2")


def test_flux_2_is_not_flux_1(scenes: dict[str, Scene]) -> None:
    import comfy.ldm.flux.model

    model = hollow("Flux2", "comfy.ldm.flux.model.Flux")
    config = transformers.flux_config(TINY_FLUX)
    del config["image_model"]
    parameters = comfy.ldm.flux.model.FluxParams(**config, global_modulation=True)
    model.model.diffusion_model.params = parameters
    refused(lambda: scenes["Flux"].apply(model), "This MODEL is Flux2 (Flux)")


PAIRS = {
    ("Flux", "SD3.5"): ("made for Flux.1 (3 layers", "the MODEL is custom SD3 (3 blocks"),
    ("Flux, InstantX", "SD3.5"): ("made for Flux.1 (6 layers", "the MODEL is custom SD3"),
    ("UNet", "Flux"): ("made for custom UNet (16 layers", "the MODEL is Flux.1 (6 layers"),
    ("UNet", "SD3.5"): ("made for custom UNet (16 layers", "the MODEL is custom SD3"),
    ("SD3.5", "Flux"): ("made for SD3.5-Large (3 layers", "the MODEL is Flux.1 (6 layers"),
    ("SD3.5", "UNet"): ("made for SD3.5-Large (3 layers", "the MODEL is custom UNet"),
    ("Flux", "UNet"): ("made for Flux.1 (3 layers", "the MODEL is custom UNet"),
}


@pytest.mark.parametrize("pair", PAIRS, ids="{0[0]} on {0[1]}".format)
def test_an_adapter_of_another_base(scenes: dict[str, Scene], pair: tuple[str, str]) -> None:
    adapter, model = (scenes[name] for name in pair)
    refused(
        lambda: model.apply(ipadapter=adapter.adapter),
        *PAIRS[pair],
        "Load an adapter made for",
    )


def test_an_adapter_for_fewer_blocks(scenes: dict[str, Scene], host: Any) -> None:
    chroma = Scene.of_transformer(host, TINY_CHROMA, xlabs(TINY_CHROMA))
    refused(
        lambda: scenes["Flux"].apply(ipadapter=chroma.adapter),
        "made for Flux.1 (19 layers of width 64)",
        "the MODEL is Flux.1 (3 layers of width 64)",
    )


def test_sd3_without_norms(scenes: dict[str, Scene]) -> None:
    """SD3-Medium's blocks do not normalise, so there is nothing to turn into an adapter's norms."""
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.ops

    config = {**transformers.sd3_config(TINY_SD3), "qk_norm": None}
    network = mmdit.OpenAISignatureMMDITWrapper(
        **config, device="meta", dtype=torch.float32, operations=comfy.ops.manual_cast
    )
    model = hollow("SD3", "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT")
    model.model.diffusion_model = network
    refused(lambda: scenes["SD3.5"].apply(model), "custom SD3 (3 blocks", "no layers that adapters")


@pytest.mark.parametrize("kind", ["style transfer", "composition", "strong style transfer"])
@pytest.mark.parametrize("base", ["Flux", "SD3.5"])
def test_weight_types_without_meaning(scenes: dict[str, Scene], base: str, kind: str) -> None:
    refused(
        lambda: scenes[base].apply(weight_type=kind),
        f"weight_type is '{kind}'",
        "is not known. Choose linear, ease in",
    )


def test_a_layer_that_is_not_there(
    scenes: dict[str, Scene], caplog: pytest.LogCaptureFixture
) -> None:
    """Sliders made for one model serve another; what is beyond the last block is said."""
    scene = scenes["Flux, InstantX"]
    given = {
        "model": scene.model,
        "ipadapter": scene.adapter,
        "image": torch.rand(1, 32, 32, 3),
        "clip_vision": scene.clip_vision,
    }
    values = {**defaults("IPAdapterMS"), **given, "layer_weights": "6:1"}
    scene.host.call("IPAdapterMS", **values)
    assert "this model has layers 0 to 5. Left out: 6. No other layer" in caplog.text


def test_a_negative_on_flux_is_told_to_need_guidance(
    scenes: dict[str, Scene], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ipadapter")
    scenes["SD3.5"].apply(image_negative=torch.rand(1, 32, 32, 3))
    assert "cfg" not in caplog.text
    scenes["Flux"].apply(image_negative=torch.rand(1, 32, 32, 3))
    assert "acts only where the sampler's cfg is above 1" in caplog.text


def test_a_pack_that_runs_the_blocks_itself_is_told(
    scenes: dict[str, Scene], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes["Flux"]
    network = scene.model.model.diffusion_model

    def replaced(img: Tensor, *_: Any, **_given: Any) -> Tensor:
        return torch.zeros(len(img), img.shape[1], 4 * scene.channels)

    monkeypatch.setattr(network, "forward_orig", replaced)
    scene.sample(scene.apply(), cfg=1.0, steps=1)
    assert "runs the blocks of Flux itself" in caplog.text
    caplog.clear()
    scene.sample(scene.apply(start_at=1.0), cfg=1.0, steps=1)
    assert "image prompt" not in caplog.text


@pytest.mark.parametrize("name", ["Flux", "SD3.5"])
def test_a_pack_that_computes_the_attention_itself_is_told(
    scenes: dict[str, Scene],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """A block whose forward another pack has replaced never asks for the attention."""
    scene = scenes[name]
    network = scene.model.model.diffusion_model
    blocks = network.double_blocks if name == "Flux" else network.joint_blocks

    def replaced(*args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        first, second = args[:2] if args else (given["img"], given["txt"])
        return first.clone(), second.clone()

    for block in blocks:
        monkeypatch.setattr(block, "forward", replaced)
    scene.sample(scene.apply(), cfg=1.0, steps=1)
    assert "The image prompt does not act in block" in caplog.text
