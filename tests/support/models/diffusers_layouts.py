"""The names under which diffusers and trainings keep an adapter, from diffusers' own classes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from .adapters import Nested

Tensors = dict[str, torch.Tensor]
_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_SD15 = {
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "block_out_channels": (32, 64, 128, 128),
    "cross_attention_dim": 64,
}
_SDXL = {
    "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
    "block_out_channels": (32, 64, 128),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {"SD1.5": _SD15, "SDXL": _SDXL, "Kolors": _SDXL}


def diffusers_unet(**config: Any) -> Any:
    """diffusers' UNet without numbers."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(attention_head_dim=8, **config)


@cache
def processor_names(base: str) -> tuple[str, ...]:
    """Names of diffusers' attention processors in its own order: entry n has the id n."""
    return tuple(diffusers_unet(**CONFIGS[base]).attn_processors)


def by_name(layers: Tensors, base: str) -> Tensors:
    """An adapter's layers under the names of the UNet's processors."""
    names = processor_names(base)
    split = {key: key.split(".", 1) for key in layers}
    return {f"{names[int(split[key][0])]}.{split[key][1]}": value for key, value in layers.items()}


def other_weights(base: str) -> Tensors:
    """Some of the UNet's own weights, Kolors' text projection among them."""
    attention = processor_names(base)[1].removesuffix(".processor")
    return {
        "conv_in.weight": torch.ones(4, 4, 3, 3),
        "encoder_hid_proj.weight": torch.ones(3, 3),
        "mid_block.resnets.0.conv1.weight": torch.ones(4, 4),
        f"{attention}.to_k.weight": torch.ones(4, 4),
        f"{attention}.to_out.0.bias": torch.ones(4),
    }


def projector_by_diffusers(image_proj: Tensors) -> Tensors:
    """A projector as diffusers names it once it is loaded."""
    loaders = pytest.importorskip("diffusers.loaders.unet")
    convert = loaders.UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    return dict(convert(None, image_proj, low_cpu_mem_usage=False).state_dict())


def in_lists(projector: Tensors) -> Tensors:
    """The same as diffusers before 0.29 had it: a resampler's layers without names."""
    numbers = {"ln0": "0", "ln1": "1", "attn": "2", "ff": "3"}
    renamed = {}
    for key, value in projector.items():
        parts = key.split(".")
        if "layers" in parts:
            parts[2] = numbers[parts[2]]
        renamed[".".join(parts)] = value
    return renamed


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


def raw_training(nested: Nested, base: str) -> Tensors:
    """What accelerate saves of the official training: safetensors keep one of equal tensors."""
    unet = {**by_name(nested["ip_adapter"], base), **other_weights(base)}
    return prefixed("unet.", unet) | prefixed("image_proj_model.", nested["image_proj"])


def raw_training_pickle(nested: Nested, base: str) -> Tensors:
    """The same as a pickle: the layers are there twice."""
    return raw_training(nested, base) | prefixed("adapter_modules.", nested["ip_adapter"])


def lightning(nested: Nested, base: str) -> dict[str, Any]:
    """A trainer around the training's own class."""
    return {"epoch": 1, "state_dict": prefixed("ip_adapter.", raw_training_pickle(nested, base))}


def as_named_processors(nested: Nested, base: str) -> dict[str, Tensors]:
    """The first public converter's result."""
    return {"image_proj": nested["image_proj"], "ip_adapter": by_name(nested["ip_adapter"], base)}


def attention_processors(nested: Nested, base: str) -> dict[str, Any]:
    """One dict per processor, and the projector as trained."""
    processors: dict[str, Any] = {"encoder_hid_proj": nested["image_proj"]}
    for key, value in by_name(nested["ip_adapter"], base).items():
        name, _, rest = key.partition(".processor.")
        processors.setdefault(f"{name}.processor", {})[rest] = value
    return processors


def diffusers_state(nested: Nested, base: str, number: int = 0) -> Tensors:
    """The state dict of diffusers' UNet with the adapter loaded, LoRA included."""
    state = {k: v for k, v in other_weights(base).items() if "encoder_hid_proj" not in k}
    for key, value in by_name(nested["ip_adapter"], base).items():
        state[_in_unet(key, number)] = value
    projector = projector_by_diffusers(nested["image_proj"])
    return state | prefixed(f"encoder_hid_proj.image_projection_layers.{number}.", projector)


def _in_unet(key: str, number: int) -> str:
    """diffusers lists the adapters of a processor, and puts LoRAs beside the weights (peft)."""
    if "_lora." not in key:
        return key.replace("_ip.weight", f"_ip.{number}.weight")
    key = key.replace("processor.to_out_lora", "to_out.0_lora").replace("processor.", "")
    for ours, theirs in (("down", "lora_A"), ("up", "lora_B")):
        key = key.replace(f"_lora.{ours}.", f".{theirs}.faceid_{number}.")
    return key


def early_diffusers(nested: Nested, base: str) -> Tensors:
    """diffusers before it had lists of adapters."""
    projector = in_lists(projector_by_diffusers(nested["image_proj"]))
    layers = by_name(nested["ip_adapter"], base)
    return prefixed("encoder_hid_proj.", projector) | layers


BY_NAME = {
    "named processors": as_named_processors,
    "raw training": raw_training,
    "raw training, pickled": raw_training_pickle,
    "in a trainer": lightning,
    "one dict per processor": attention_processors,
}
BY_DIFFUSERS = {"diffusers": diffusers_state, "early diffusers": early_diffusers}
