"""Model files of full size on disk: a real header, and holes where the data would be."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch

from .adapters import Nested, Shapes, flat, shapes_of

Data = Mapping[str, torch.Tensor]


def sparse_safetensors(path: Path, shapes: Shapes, data: Data | None = None) -> Path:
    """An fp16 safetensors file of these shapes; only the tensors in `data` have content."""
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for key, tensor in (data or {}).items():
            stream.seek(8 + len(text) + header[key]["data_offsets"][0])
            stream.write(tensor.to(torch.float16).numpy().tobytes())
    os.truncate(path, 8 + len(text) + end)
    return path


def adapter_file(path: Path, nested: Nested, data: Data | None = None) -> Path:
    """An adapter as a sparse file; a .bin too has safetensors content (content decides)."""
    return sparse_safetensors(path, shapes_of(flat(nested)), data)


def encoder_shapes(
    hidden: int, projected: int, image_size: int, layers: int = 2, patch: int = 14
) -> Shapes:
    """The keys that tell a CLIP vision encoder in transformers' layout (a few of its layers)."""
    embeddings = "vision_model.embeddings."
    shapes: Shapes = {
        f"{embeddings}class_embedding": (hidden,),
        f"{embeddings}patch_embedding.weight": (hidden, 3, patch, patch),
        f"{embeddings}position_embedding.weight": ((image_size // patch) ** 2 + 1, hidden),
    }
    for i in range(layers):
        shapes[f"vision_model.encoder.layers.{i}.layer_norm1.weight"] = (hidden,)
    return shapes | ({"visual_projection.weight": (projected, hidden)} if projected else {})


def openclip_shapes(hidden: int, projected: int, image_size: int) -> Shapes:
    """The same in OpenCLIP's layout."""
    return {
        "visual.class_embedding": (hidden,),
        "visual.conv1.weight": (hidden, 3, 14, 14),
        "visual.positional_embedding": ((image_size // 14) ** 2 + 1, hidden),
        "visual.proj": (hidden, projected),
        "visual.transformer.resblocks.0.attn.in_proj_weight": (3 * hidden, hidden),
    }


ENCODER_FILES = {
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": (1280, 1024, 224),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors": (1664, 1280, 224),
    "clip-vit-large-patch14-336.bin": (1024, 768, 336),
    "clip-vit-large-patch14.safetensors": (1024, 768, 224),
}


def lora_shapes(
    context: int, width: int = 320, rank: int = 128, feed_forward: bool = False
) -> Shapes:
    """The keys of a LoRA on a block's attention, as FaceID's LoRAs have them for every block."""
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
    shapes: Shapes = {}
    for attention, inputs in (("attn1", width), ("attn2", context)):
        for kind in ("to_q", "to_k", "to_v", "to_out_0"):
            name = f"{block}{attention}_{kind}"
            seen = inputs if kind in ("to_k", "to_v") else width
            shapes[f"{name}.lora_down.weight"] = (rank, seen)
            shapes[f"{name}.lora_up.weight"] = (width, rank)
    if feed_forward:
        shapes[f"{block}ff_net_2.lora_down.weight"] = (rank, 4 * width)
        shapes[f"{block}ff_net_2.lora_up.weight"] = (width, rank)
    return shapes
