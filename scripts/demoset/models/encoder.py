"""A tiny CLIP vision encoder (transformers' CLIPVisionModelWithProjection) for the domain."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from . import packed

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SIZE, PATCH = 128, 16
GRID = IMAGE_SIZE // PATCH
CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "projection_dim": 256,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def build() -> CLIPVisionModelWithProjection:
    """The encoder with transformers' initial weights, attention as plain PyTorch."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG))


def preprocess(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in 0..1 to normalised (B, 3, 128, 128); the images are square."""
    if images.shape[-1] != IMAGE_SIZE:
        size = (IMAGE_SIZE, IMAGE_SIZE)
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (images.new_tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    return (images - mean) / deviation


def save(encoder: nn.Module, out: Path) -> None:
    """Write the encoder's weights packed, under transformers' keys."""
    state = {k: v for k, v in encoder.state_dict().items() if "position_ids" not in k}
    packed.save(state, out)


def load(path: Path) -> CLIPVisionModelWithProjection:
    """The trained encoder in float32."""
    encoder = build()
    encoder.load_state_dict(packed.load(path)[0], strict=False)
    return encoder.train(False).requires_grad_(False)


def write_folder(weights: Path, folder: Path) -> None:
    """A Hugging Face folder: config.json, preprocessor_config.json, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "torch_dtype": "float16",
        **CONFIG,
    }
    preprocessor = {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": DEVIATION,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "preprocessor_config.json").write_text(
        json.dumps(preprocessor, indent=2) + "\n", "utf-8"
    )
    packed.write_half(packed.load(weights)[0], folder / "model.safetensors", {"format": "pt"})
