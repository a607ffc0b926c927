"""Writes models with seeded random weights that ComfyUI's own loaders take, for want of real ones.

The pictures they make mean nothing, but every step on the way to them is the real one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .random_transformers import (
    FLUX_SIZE,
    SD3_SIZE,
    SIGLIP_WIDTH,
    flux,
    flux_controlnet,
    redux,
    save_sparsely,
    sd3_checkpoint,
    siglip,
    text_encoder_file,
    vit_l,
)
from .transformer_adapters import State, instantx, sd3, xlabs

Shapes = Mapping[str, torch.Size]

# One level of Stable Diffusion 1.5, at its width: what CheckpointLoaderSimple takes for SD1.5.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "legacy": False,
}
# Cross-attention layers in the order of adapter files: input, output, output, middle.
ADAPTER_WIDTHS = (320, 320, 320, 320)
TOKEN_DIM = 768
IMAGE_DIM = 768  # what CLIP ViT-L projects an image to
HIDDEN_DIM = 1024  # its hidden states
FACE_DIM = 512
NUM_TOKENS = 4


def random_state(shapes: Shapes, seed: int) -> State:
    """Weights of these shapes that keep the variance of what passes through; neutral norms."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            scale = 1 / math.sqrt(math.prod(shape[1:]))
            tensor = torch.randn(shape, generator=generator).mul_(scale)
        elif name.endswith("weight"):
            tensor = torch.ones(shape)
        else:
            tensor = torch.zeros(shape)
        state[name] = tensor.half()
    return state


def shapes_of(module: nn.Module) -> Shapes:
    """The shape of every tensor of a module, by name."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def checkpoint() -> State:
    """UNet, text encoder and image decoder in the layout of an SD1.5 checkpoint."""
    parts = {
        "model.diffusion_model.": random_state(shapes_of(unet()), seed=1),
        "cond_stage_model.transformer.": random_state(shapes_of(text_encoder()), seed=2),
        "first_stage_model.": autoencoder(seed=3),
    }
    return {
        prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()
    }


def unet() -> nn.Module:
    """The host's UNet without weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**UNET, device="meta", operations=comfy.ops.disable_weight_init)


def text_encoder() -> nn.Module:
    """The host's CLIP-L text encoder without weights."""
    import comfy
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    config = json.loads(host_file(comfy, "sd1_clip_config.json"))
    return CLIPTextModel(config, torch.float16, "meta", comfy.ops.disable_weight_init)


def autoencoder(seed: int, channels: int = 4) -> State:
    """The host's tiny autoencoder for latents of so many channels; the decoder's output is brought
    to the range of a picture."""
    from comfy.taesd.taesd import TAESD

    model = TAESD(latent_channels=channels)
    state = random_state(shapes_of(model), seed)
    state |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    # An untrained UNet leaves latents far from zero, at the ends of the decoder's range.
    latent = 30 * torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        picture = model.taesd_decoder(latent)
    last = max(int(name.split(".")[1]) for name in state if name.startswith("taesd_decoder"))
    gain = 0.25 / picture.std(dim=(0, 2, 3))
    weight, bias = f"taesd_decoder.{last}.weight", f"taesd_decoder.{last}.bias"
    state[weight] = (state[weight].float() * gain[:, None, None, None]).half()
    state[bias] = (0.5 - picture.mean(dim=(0, 2, 3)) * gain).half()
    return state


def image_encoder() -> State:
    """CLIP ViT-L, the smallest image encoder that the host's CLIPVisionLoader recognises."""
    import comfy
    import comfy.ops
    from comfy.clip_model import CLIPVisionModelProjection

    config = json.loads(host_file(comfy, "clip_vision_config_vitl.json"))
    model = CLIPVisionModelProjection(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    return random_state(shapes_of(model), seed=4)


def adapter() -> State:
    """A standard adapter for the UNet above, as the official files are laid out."""
    image_proj = {
        **_linear("proj", NUM_TOKENS * TOKEN_DIM, IMAGE_DIM),
        **_norm("norm", TOKEN_DIM),
    }
    return _adapter(image_proj, seed=5)


def plus_adapter() -> State:
    """A Plus adapter for the same UNet, small inside."""
    width, heads = 256, 4
    inner = 64 * heads
    image_proj: dict[str, tuple[int, ...]] = {
        "latents": (1, 16, width),
        **_linear("proj_in", width, HIDDEN_DIM),
        **_linear("proj_out", TOKEN_DIM, width),
        **_norm("norm_out", TOKEN_DIM),
    }
    for layer in range(2):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        image_proj |= {
            **_norm(f"{attention}.norm1", width),
            **_norm(f"{attention}.norm2", width),
            f"{attention}.to_q.weight": (inner, width),
            f"{attention}.to_kv.weight": (2 * inner, width),
            f"{attention}.to_out.weight": (width, inner),
            **_norm(f"{feed_forward}.0", width),
            f"{feed_forward}.1.weight": (4 * width, width),
            f"{feed_forward}.3.weight": (width, 4 * width),
        }
    return _adapter(image_proj, seed=6)


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def faceid_adapter() -> State:
    """A FaceID adapter for the same UNet; its LoRA's rank is 1."""
    image_proj = {
        **_linear("proj.0", 2 * FACE_DIM, FACE_DIM),
        **_linear("proj.2", NUM_TOKENS * TOKEN_DIM, 2 * FACE_DIM),
        **_norm("norm", TOKEN_DIM),
    }
    return _adapter(image_proj, seed=9, lora=True)


def _lora_shapes(number: int, width: int, context: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for kind, into in (("q", width), ("k", context), ("v", context), ("out", width)):
        shapes[f"ip_adapter.{number}.to_{kind}_lora.down.weight"] = (1, into)
        shapes[f"ip_adapter.{number}.to_{kind}_lora.up.weight"] = (width, 1)
    return shapes


def _adapter(image_proj: Mapping[str, tuple[int, ...]], seed: int, lora: bool = False) -> State:
    shapes = {f"image_proj.{name}": shape for name, shape in image_proj.items()}
    for index, width in enumerate(ADAPTER_WIDTHS):
        if lora:
            shapes |= _lora_shapes(2 * index, width, width)
            shapes |= _lora_shapes(2 * index + 1, width, TOKEN_DIM)
        for kind in ("k", "v"):
            shapes[f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight"] = (width, TOKEN_DIM)
    return random_state({name: torch.Size(shape) for name, shape in shapes.items()}, seed)


def controlnet() -> State:
    """A ControlNet for the UNet above, with outputs that change something."""
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    config = {key: value for key, value in UNET.items() if key != "out_channels"}
    model = ControlNet(
        **config, hint_channels=3, device="meta", operations=comfy.ops.disable_weight_init
    )
    return random_state(shapes_of(model), seed=7)


def lora() -> State:
    """A LoRA for one layer of the UNet above."""
    layer = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_q"
    width = ADAPTER_WIDTHS[-1]
    shapes = {
        f"{layer}.lora_down.weight": torch.Size((4, width)),
        f"{layer}.lora_up.weight": torch.Size((width, 4)),
    }
    return random_state(shapes, seed=8)


def host_file(package: object, name: str) -> str:
    """The text of a file beside one of the host's modules."""
    (folder,) = package.__path__  # type: ignore[attr-defined]
    return (Path(folder) / name).read_text("utf-8")


MODELS: dict[str, Callable[[], State]] = {
    "checkpoints/random.safetensors": checkpoint,
    "clip_vision/random.safetensors": image_encoder,
    "ipadapter/random.safetensors": adapter,
    "ipadapter/random_plus.safetensors": plus_adapter,
    "ipadapter/random_faceid.safetensors": faceid_adapter,
    "controlnet/random.safetensors": controlnet,
    "loras/random.safetensors": lora,
    "diffusion_models/random_flux.safetensors": flux,
    "text_encoders/random_clip_l.safetensors": text_encoder_file,
    "vae/random_flux.safetensors": lambda: autoencoder(seed=29, channels=16),
    "checkpoints/random_sd3.safetensors": sd3_checkpoint,
    "controlnet/random_flux.safetensors": flux_controlnet,
    "style_models/random_redux.safetensors": redux,
    "clip_vision/random_siglip.safetensors": siglip,
    "clip_vision/random_vit_l.safetensors": vit_l,
    "ipadapter/random_xlabs.safetensors": lambda: xlabs(FLUX_SIZE, IMAGE_DIM),
    "ipadapter/random_xlabs_v2.safetensors": lambda: xlabs(FLUX_SIZE, IMAGE_DIM, tokens=16),
    "ipadapter/random_instantx.safetensors": lambda: instantx(FLUX_SIZE, SIGLIP_WIDTH),
    "ipadapter/random_sd3.safetensors": lambda: sd3(SD3_SIZE, SIGLIP_WIDTH),
}

# What stands for a published file of a transformer.
STAND_INS = {
    "flux1-dev.safetensors": "random_flux.safetensors",
    "flux1-dev-kontext_fp8_scaled.safetensors": "random_flux.safetensors",
    "ae.safetensors": "random_flux.safetensors",
    "flux-canny-controlnet-v3.safetensors": "random_flux.safetensors",
    "sd3.5_large_fp8_scaled.safetensors": "random_sd3.safetensors",
    "flux-ip-adapter.safetensors": "random_xlabs.safetensors",
    "flux-ip-adapter-v2.safetensors": "random_xlabs_v2.safetensors",
    "flux.1-dev-ip-adapter.bin": "random_instantx.safetensors",
    "sd3.5-large-ip-adapter.bin": "random_sd3.safetensors",
    "sigclip_vision_patch14_384.safetensors": "random_siglip.safetensors",
    "clip-vit-large-patch14.safetensors": "random_vit_l.safetensors",
}
# T5 cannot be small (see random_transformers.py).
KINDS = {"DualCLIPLoader": "CLIPLoader"}

# What sets a workflow to these models, by node class, with a size and a pace for a CPU.
SETTINGS: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": "random.safetensors"},
    "CLIPVisionLoader": {"clip_name": "random.safetensors"},
    "IPAdapterModelLoader": {"ipadapter_file": "random.safetensors"},
    "ControlNetLoader": {"control_net_name": "random.safetensors"},
    "LoraLoaderModelOnly": {"lora_name": "random.safetensors"},
    "LoadImage": {"image": "reference.png"},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "EmptySD3LatentImage": {"width": 64, "height": 64},
    "ImageScale": {"width": 64, "height": 64},
    "CLIPLoader": {"clip_name": "random_clip_l.safetensors", "type": "sd3"},
    "KSampler": {"steps": 8},
    "IPAdapterUnifiedLoaderFaceID": {"provider": "CPU"},
    "IPAdapterMS": {"layer_weights": "1:0.4, 2:1.2"},
    "IPAdapterWeights": {"frames": 2},
    "IPAdapterTrain": {"steps": 2, "resolution": 128},
    "IPAdapterSave": {"folder": "output"},  # in the models it would be found by others
}


def configured(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph in API format with these models."""
    for node in graph.values():
        given, kind = node["inputs"], node["class_type"]
        named = {key: STAND_INS[v] for key, v in given.items() if str(v) in STAND_INS}
        node["class_type"] = KINDS.get(kind, kind)
        kept = {} if kind in KINDS else given
        node["inputs"] = {**kept, **SETTINGS.get(node["class_type"], {}), **named}
    return graph


def _small(tensor: Tensor) -> Tensor:
    return tensor if tensor.element_size() == 1 else tensor.half()


def write(folder: Path) -> None:
    """Write the models that `folder` lacks; each appears only once it is complete."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    for name, build in MODELS.items():
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.part")
            state = build()
            save_sparsely({key: _small(value) for key, value in state.items()}, partial)
            partial.replace(target)


def random_models() -> Path:
    """The folder of these models in the cache, written once (about 1 GB)."""
    from .environment import cache_folder, say

    folder = cache_folder() / "models"
    if not all((folder / name).exists() for name in MODELS):
        say(f"Writing models with random weights into {folder} (once)")
        write(folder)
    return folder
