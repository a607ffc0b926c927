"""The trained demo models in a folder as ComfyUI takes them, and what sets a workflow to them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .environment import cache_folder, say

if TYPE_CHECKING:
    from PIL.Image import Image

CHECKPOINT = "demoset.safetensors"
ENCODER = "demoset"
STANDARD, PLUS = "demoset-standard.safetensors", "demoset-plus.safetensors"
CONTROLNET, LORA = "demoset-edges.safetensors", "demoset-night.safetensors"
SIZE = 128  # what the demo models draw


def demoset() -> ModuleType:
    """The package `demoset` with the modules that write and draw."""
    for name in ("build", "host", "world.scenes", "world.night"):
        importlib.import_module(f"demoset.{name}")
    return importlib.import_module("demoset")


def demo_models() -> Path:
    """The demo models as a ComfyUI models folder, written when they have changed: seconds."""
    folder = cache_folder() / "demoset"
    if demoset().build.ensure(folder):
        say(f"Wrote the demo models into {folder}")
    return folder


def drawing(shape: str, colour: str, background: str, texture: str = "plain") -> Image:
    """A picture of the kind that the demo models know: one big shape in the middle."""
    import numpy as np
    from PIL import Image

    scenes = demoset().world.scenes
    place = ((64.0, 64.0), 40.0, 0.0)
    item = scenes.Item(shape, colour, texture, "medium", "centre", *place)
    scene = scenes.Scene(background, None, False, (item,))
    pixels = scenes.render(scene, scenes.scene_rng(0, 0))
    return Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def photograph() -> Image:
    """A real photograph that comes with scikit-image: Chelsea the cat, by Stefan van der Walt."""
    from PIL import Image
    from skimage import data

    return Image.fromarray(data.chelsea())


def layout_distance(picture: Image, reference: Image) -> float:
    """How far two pictures' colours and where they lie are apart, 0 to 1: the mean difference of
    both at 16 x 16 pixels."""
    import numpy as np
    from PIL import Image, ImageOps

    small = [
        np.asarray(
            ImageOps.fit(one.convert("RGB"), (SIZE, SIZE)).resize((16, 16), Image.Resampling.BOX),
            dtype=np.float32,
        )
        for one in (picture, reference)
    ]
    return float(np.abs(small[0] - small[1]).mean() / 255)


def shuffled_adapter(models: Path, name: str, out: str) -> None:
    """A copy of an adapter with the numbers of every K' and V' in random order: it must do
    nothing of use."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator, state = torch.Generator().manual_seed(1), {}
    with safe_open(models / "ipadapter" / name, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            tensor = file.get_tensor(key)
            if key.startswith("ip_adapter."):
                order = torch.randperm(tensor.numel(), generator=generator)
                tensor = tensor.flatten()[order].view(tensor.shape)
            state[key] = tensor
    save_file(state, models / "ipadapter" / out)


# What sets a workflow to these models, by node class, with a size and a pace for a CPU. They know
# no words but their own: the pictures speak.
SETTINGS: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "CLIPVisionLoader": {"clip_vision_name": ENCODER},
    "CLIPTextEncode": {"text": ""},
    "IPAdapterModelLoader": {"ipadapter_file": STANDARD},
    "ControlNetLoader": {"control_net_name": CONTROLNET},
    "LoraLoaderModelOnly": {"lora_name": LORA, "strength_model": 1.0},
    "EmptyLatentImage": {"width": SIZE, "height": SIZE},
    "KSampler": {"steps": 12, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"},
    "IPAdapterUnifiedLoaderFaceID": {"provider": "CPU"},
    "IPAdapterMS": {"layer_weights": "1:0.4, 2:1.2"},
    "IPAdapterWeights": {"frames": 4},
    "IPAdapterTrain": {"steps": 20, "resolution": SIZE},
}
# ComfyUI's own loader knows published encoders only; this pack's reads any CLIP.
KINDS = {"CLIPVisionLoader": "IPAdapterImageEncoderLoader"}


def configured(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph in API format with these models."""
    for node in graph.values():
        kind = node["class_type"]
        node["class_type"] = KINDS.get(kind, kind)
        kept = {} if kind in KINDS else node["inputs"]
        node["inputs"] = kept | SETTINGS.get(kind, {})
    return graph
