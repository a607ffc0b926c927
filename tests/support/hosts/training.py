"""What a training graph needs, tiny and as nodes: base, image encoder, latents, text, pictures.

The nodes make their models while the host runs them, that is in inference mode, as loaders do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.unets import Geometry, Pair, build_model, build_pair
from ..models.vision import tiny_clip_vision
from .process import Host, host_nodes

PICTURES = 4
# The smallest UNet with attn2 in the input, output and middle blocks.
ONE_LEVEL = Geometry(
    "one level",
    dict(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
    ),
    dict(
        model_channels=32,
        channel_mult=[1],
        num_res_blocks=[1],
        num_heads=8,
        num_head_channels=-1,
        transformer_depth=[1],
        transformer_depth_output=[1, 1],
        transformer_depth_middle=1,
        use_linear_in_transformer=False,
    ),
    context_dim=64,
    widths=(32,) * 4,
    latent=8,
)


def pictures(count: int = PICTURES, size: int = 32) -> Tensor:
    """(count, size, size, 3) flat colours with a bright square each."""
    g = torch.Generator().manual_seed(1)
    image = torch.rand(count, 1, 1, 3, generator=g).repeat(1, size, size, 1)
    for number in range(count):
        image[number, number : size // 2, number : size // 2] = 1.0
    return image


def latents(count: int = PICTURES) -> Tensor:
    """(count, 4, 8, 8) of the VAE's scale, one pattern per picture."""
    g = torch.Generator().manual_seed(2)
    return 5.5 * torch.randn(count, 4, 1, 1, generator=g).repeat(1, 1, 8, 8)


def conditioning(count: int = PICTURES, width: int = ONE_LEVEL.context_dim) -> list:
    """One entry per picture, as from several CLIP Text Encode nodes combined."""
    g = torch.Generator().manual_seed(3)
    return [[torch.randn(1, 7, width, generator=g), {}] for _ in range(count)]


class TrainingInputs:
    """Node: everything that IPAdapter Train takes."""

    RETURN_TYPES = ("MODEL", "CLIP_VISION", "LATENT", "CONDITIONING", "IMAGE")
    FUNCTION, CATEGORY = "make", "test"
    pair: Pair

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def make(self) -> tuple[Any, ...]:
        state = {key: value.clone() for key, value in self.pair.reference.state_dict().items()}
        model = build_model(self.pair.geometry, state)
        assert all(p.is_inference() for p in model.model.diffusion_model.parameters())
        return model, tiny_clip_vision(), {"samples": latents()}, conditioning(), pictures()


class Capture:
    """Node: keeps what it is given, by name, for the test."""

    RETURN_TYPES, OUTPUT_NODE = (), True
    FUNCTION, CATEGORY = "keep", "test"
    kept: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*",), "name": ("STRING", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, Any]) -> bool:
        return True

    def keep(self, value: Any, name: str) -> tuple[()]:
        self.kept[name] = value
        return ()


def register(host: Host) -> Pair:
    """Add the two nodes to the host; returns the base with its twin in `diffusers`."""
    pair = build_pair(ONE_LEVEL)
    TrainingInputs.pair = pair
    nodes = {"TestTrainingInputs": TrainingInputs, "TestCapture": Capture}
    host_nodes().NODE_CLASS_MAPPINGS.update(nodes)
    return pair


def node_inputs(model: Any, **changes: Any) -> dict[str, Any]:
    """What IPAdapter Train is called with outside of a graph; `changes` are its widgets."""
    return {
        **train_graph(**changes)["2"]["inputs"],
        "model": model,
        "clip_vision": tiny_clip_vision(),
        "latent": {"samples": latents()},
        "conditioning": conditioning(),
        "images": pictures(),
    }


def train_graph(**changes: Any) -> dict[str, Any]:
    """inputs (1) -> IPAdapter Train (2); `changes` are the train node's widgets and links."""
    settings = {
        "model": ["1", 0],
        "clip_vision": ["1", 1],
        "latent": ["1", 2],
        "conditioning": ["1", 3],
        "images": ["1", 4],
        "family": "standard",
        "num_tokens": 0,
        "steps": 20,
        "batch_size": 2,
        "accumulation": 1,
        "learning_rate": 1e-3,
        "seed": 7,
        "drop_image": 0.05,
        "drop_text": 0.05,
        "drop_both": 0.05,
        "precision": "auto",
        "image_folder": "(none)",
        "resolution": 64,
        "skip_unreadable": False,
        "captions": "",
    }
    return {
        "1": {"class_type": "TestTrainingInputs", "inputs": {}},
        "2": {"class_type": "IPAdapterTrain", "inputs": {**settings, **changes}},
    }


def capture_node(link: list, name: str = "result") -> dict[str, Any]:
    """A node that keeps what `link` carries in `Capture.kept`."""
    return {"class_type": "TestCapture", "inputs": {"value": link, "name": name}}


def save_node(link: list, prefix: str = "trained", **changes: Any) -> dict[str, Any]:
    """An IPAdapter Save node in fp32."""
    inputs = {
        "ipadapter": link,
        "filename_prefix": prefix,
        "folder": "models/ipadapter",
        "precision": "fp32",
        "with_training_state": False,
    }
    return {"class_type": "IPAdapterSave", "inputs": {**inputs, **changes}}
