"""The demo set's ControlNet and LoRA: loaded by the stock nodes, the same as trained, and followed.

The silhouettes' overlap goes from 0 to 1, distances of colours from 0 to 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pytest
import torch
from support.models.demoset import FEW, Demo, load_demo
from torch import Tensor

# What is drawn for the lines: shape, centre, radius. No caption here names a shape.
DRAWN = (
    ("cross", (80.0, 70.0), 42.0),
    ("circle", (48.0, 54.0), 38.0),
    ("square", (64.0, 80.0), 38.0),
    ("triangle", (74.0, 60.0), 46.0),
)
CAPTION = "a red shape on a white background"


class Drawn:
    """The demo set, pictures to be followed, and what is made of them."""

    def __init__(self, demo: Demo) -> None:
        self.demo, self.tools = demo, demo.tools
        self.control, self.lora = demo.tools.models.control, demo.tools.models.lora
        self.weights = demo.tools.build.WEIGHTS

    @cached_property
    def pictures(self) -> Tensor:
        """A black shape on white for each entry of DRAWN, (4, 3, 128, 128)."""
        scenes, drawn = self.tools.world.scenes, []
        for shape, centre, radius in DRAWN:
            item = scenes.Item(shape, "black", "plain", "medium", "centre", centre, radius, 0.0)
            scene = scenes.Scene("white", None, False, (item,))
            drawn.append(torch.from_numpy(scenes.render(scene, scenes.scene_rng(1, 0))))
        return torch.stack(drawn)

    @cached_property
    def lines(self) -> Tensor:
        """What the host's own Canny node makes of them, (4, 128, 128, 3)."""
        image = self.pictures.movedim(1, -1)
        return self.demo.host.call("Canny", image=image, low_threshold=0.4, high_threshold=0.8)[0]

    @cached_property
    def led(self) -> tuple[Any, Tensor]:
        """The shipped ControlNet and the lines."""
        name = self.control.FILE.name
        return self.demo.host.call("ControlNetLoader", control_net_name=name)[0], self.lines

    @cached_property
    def free(self) -> Tensor:
        """Neither ControlNet nor LoRA."""
        return self.demo.sample(caption=CAPTION)

    def night(self, model: Any) -> Any:
        """A MODEL with the shipped LoRA."""
        inputs = {"model": model, "lora_name": self.lora.FILE.name, "strength_model": 1.0}
        return self.demo.host.call("LoraLoaderModelOnly", **inputs)[0]

    def overlap(self, images: Tensor) -> float:
        return round(self.demo.shape_overlap(images, self.pictures), 3)

    def darkness(self, images: Tensor) -> float:
        """Distance of the backgrounds to the night's colour."""
        colour = torch.tensor(self.tools.world.night.NIGHT)[:, None, None]
        night = colour.expand(len(images), 3, 128, 128)
        return round(self.demo.background_distance(images, night), 3)

    def unets(self) -> tuple[Any, Any]:
        """The base as stored and as the host's class, in fp32."""
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
        from tools.random_models import UNET

        narrow = self.tools.models.narrow
        state, widths = narrow.load(self.weights / "unet.safetensors")
        small, wide = narrow.NarrowUNet(widths), UNetModel(**UNET, device="cpu")
        small.load_state_dict(state)
        wide.load_state_dict(narrow.widen(state, widths))
        return small, wide


@pytest.fixture(scope="module")
def drawn(host: Any) -> Drawn:
    return Drawn(load_demo(host))


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps, context."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    return latents, torch.tensor([30.0, 800.0]), torch.randn(2, 77, 768, generator=generator)


def shuffled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of every matrix in random order."""
    generator = torch.Generator().manual_seed(1)

    def shuffle(value: Tensor) -> Tensor:
        order = torch.randperm(value.numel(), generator=generator)
        return value.flatten()[order].view(value.shape) if value.ndim > 1 else value

    return {key: shuffle(value) for key, value in state.items()}


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal to a thousandth of the largest value."""
    return bool((found - expected).abs().max() < 1e-3 * expected.abs().max())


def test_stock_nodes_take_every_weight(drawn: Drawn, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        control, _ = drawn.led
        model = drawn.night(drawn.demo.model)
    assert not [text for text in caplog.messages if "controlnet keys" in text]
    assert not [text for text in caplog.messages if "not loaded" in text]
    assert type(control.control_model).__module__ == "comfy.cldm.cldm"
    assert len(model.patches) == len(drawn.lora.projections()) == 32


@torch.inference_mode()
def test_wide_control_net_is_the_narrow_one(
    drawn: Drawn, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    from comfy.controlnet import load_controlnet_state_dict

    small, hint = drawn.control.load(drawn.weights), drawn.lines[:2].movedim(-1, 1)
    wide = load_controlnet_state_dict(
        drawn.control.widen(small.state_dict(), small.widths),
        model_options={"dtype": torch.float32},
    ).control_model
    added, theirs = small(*inputs, hint), wide(inputs[0], hint, *inputs[1:])
    used = drawn.tools.models.narrow.Indices(small.widths).channels
    for ours, out in zip(added, [*theirs["output"], *theirs["middle"]], strict=True):
        assert close(out, drawn.tools.models.narrow.spread(ours, (None, used)))
    small_base, wide_base = drawn.unets()
    assert close(wide_base(*inputs, control=theirs), small_base(*inputs, added))


@torch.inference_mode()
def test_wide_lora_is_the_narrow_one(drawn: Drawn, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    import comfy.lora

    state, widths = drawn.tools.models.narrow.load(drawn.weights / drawn.lora.STORED)
    small, wide = drawn.unets()
    plain, weights = small(*inputs), wide.state_dict()
    drawn.lora.attach(small)
    small.load_state_dict(state, strict=False)
    keys = comfy.lora.model_lora_keys_unet(drawn.demo.model.model, {})
    for key, change in comfy.lora.load_lora(drawn.lora.widen(state, widths), keys).items():
        name, patch = key.removeprefix("diffusion_model."), (1.0, change, 1.0, None, None)
        weights[name] = comfy.lora.calculate_weight([patch], weights[name].clone(), key)
    wide.load_state_dict(weights)
    changed = small(*inputs)
    assert close(wide(*inputs), changed)
    assert not close(plain, changed)


def test_lines_are_followed(drawn: Drawn) -> None:
    from comfy.controlnet import load_controlnet_state_dict

    state, widths = drawn.tools.models.narrow.load(drawn.weights / drawn.control.STORED)
    broken = load_controlnet_state_dict(drawn.control.widen(shuffled(state), widths))
    found = {
        "led": drawn.overlap(drawn.demo.sample(caption=CAPTION, control=drawn.led)),
        "free": drawn.overlap(drawn.free),
        "broken": drawn.overlap(drawn.demo.sample(caption=CAPTION, control=(broken, drawn.lines))),
    }
    print(f"\noverlap with the drawn shapes: {found}", end="")
    assert found["led"] > 0.6 and found["led"] > max(found["free"], found["broken"]) + 0.15


def test_image_prompt_colours_what_lines_shape(drawn: Drawn) -> None:
    demo = drawn.demo
    references = demo.references[:FEW].movedim(-1, 1)
    model = demo.applied(demo.adapter("standard"))
    both, only = demo.sample(model, control=drawn.led), demo.sample(model)
    overlaps = drawn.overlap(both), drawn.overlap(only)
    distances = [round(demo.background_distance(a, references), 3) for a in (both, drawn.free)]
    print(f"\nwith lines: overlap {overlaps}, background {distances}", end="")
    assert overlaps[0] > 0.55 and overlaps[0] > overlaps[1] + 0.1
    assert distances[0] < 0.4 and distances[0] < 0.75 * distances[1]


def test_lora_makes_night(drawn: Drawn) -> None:
    from comfy.sd import load_lora_for_models

    state, widths = drawn.tools.models.narrow.load(drawn.weights / drawn.lora.STORED)
    changed = drawn.lora.widen(shuffled(state), widths)
    broken, _ = load_lora_for_models(drawn.demo.model, None, changed, 1.0, 0)
    night = drawn.night(drawn.demo.model)
    found = {
        "night": drawn.darkness(drawn.demo.sample(night, CAPTION)),
        "free": drawn.darkness(drawn.free),
        "broken": drawn.darkness(drawn.demo.sample(broken, CAPTION)),
    }
    print(f"\ndistance of backgrounds to the night's colour: {found}", end="")
    assert found["night"] < 0.35
    assert found["night"] < 0.5 * min(found["free"], found["broken"])
