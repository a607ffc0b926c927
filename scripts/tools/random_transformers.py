"""Flux and SD3.5 with seeded random weights, for files that ComfyUI's own loaders take.

The host counts on Flux's full width (24 heads of 128), whatever a file holds: one double block is
the least that it loads. So that this stays small, most rows of a large matrix are zero; files leave
them out where the file system can (`save_sparsely`). SD3.5's width it reads from the file.

Its T5 text encoder cannot be small: 24 layers of full width, 4.8 GB. Here CLIP-L speaks alone, as
SD3's loader lets it: its states are padded to T5's width.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .transformer_adapters import State

Shapes = Mapping[str, Sequence[int]]

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,
    "depth_single_blocks": 0,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
SD3_HEADS = 2  # of 64 each, and as many blocks, as the host infers
SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": SD3_HEADS,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 64 * SD3_HEADS},
    },
    "pos_embed_max_size": 16,
    "num_patches": 256,
    "qk_norm": "rms",
    "qkv_bias": True,
}
SIGLIP_WIDTH, INNER = 1152, 64  # inner: of encoders' blocks
# Of a large matrix, so many rows of each so many are not zero: whole pages of a file.
LARGE, KEPT, EACH = 1 << 19, 4, 96
WORDS = 8192  # the common ones come first in CLIP's list
PAGE = 4096


@dataclass(frozen=True)
class Size:
    """A transformer as an adapter sees it. text_dim: width of image tokens, any number here."""

    width: int
    head_dim: int
    double: int
    single: int = 0
    text_dim: int = 64

    @property
    def blocks(self) -> int:
        """All of them."""
        return self.double + self.single


FLUX_SIZE = Size(3072, 128, double=1)
SD3_SIZE = Size(64 * SD3_HEADS, 64, double=SD3_HEADS)


def flux() -> State:
    """A Flux.1 of one block."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    model = Flux(**FLUX, device="meta", operations=comfy.ops.disable_weight_init)
    return thin_state(_shapes_of(model), seed=21)


def flux_controlnet() -> State:
    """A ControlNet for it, in XLabs' layout, which takes a picture."""
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    model = ControlNetFlux(**FLUX, device="meta", operations=comfy.ops.disable_weight_init)
    return thin_state(_shapes_of(model), seed=22)


def redux() -> State:
    """A style model: SigLIP's patches become words for Flux."""
    from comfy.ldm.flux.redux import ReduxImageEncoder

    return thin_state(_shapes_of(ReduxImageEncoder(device="meta")), seed=23)


def text_encoder_file() -> State:
    """CLIP-L, as it lies in a file of its own."""
    from .random_models import shapes_of, text_encoder

    shapes = dict(shapes_of(text_encoder()))
    name = "text_model.embeddings.token_embedding.weight"
    words, state = shapes.pop(name), thin_state(shapes, seed=24)
    state[name] = torch.zeros(words, dtype=torch.float8_e4m3fn)
    spoken = [*range(WORDS), words[0] - 2, words[0] - 1]  # begin and end of a text are the last
    _fill(state[name], spoken, 1.0, torch.Generator().manual_seed(25))
    return state


def sd3_network() -> State:
    """An SD3.5 of two narrow blocks."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    model = OpenAISignatureMMDITWrapper(
        **SD3, device="meta", operations=comfy.ops.disable_weight_init
    )
    return thin_state(_shapes_of(model), seed=26)


def sd3_checkpoint() -> State:
    """The same with CLIP-L and an image decoder."""
    from .random_models import autoencoder

    parts = {
        "model.diffusion_model.": sd3_network(),
        "text_encoders.clip_l.transformer.": text_encoder_file(),
        "first_stage_model.": autoencoder(seed=27, channels=16),
    }
    return {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}


def siglip() -> State:
    """A SigLIP and its pooling head, for pictures of 4 x 4 patches."""
    width = SIGLIP_WIDTH
    shapes = {
        **_vision(width, 16),
        "embeddings.patch_embedding.bias": (width,),
        "head.probe": (1, 1, width),
        "head.attention.in_proj_weight": (3 * width, width),
        "head.attention.in_proj_bias": (3 * width,),
        **_pair("head.attention.out_proj", width, width),
        **_pair("head.layernorm", width),
        **_pair("head.mlp.fc1", INNER, width),
        **_pair("head.mlp.fc2", width, INNER),
    }
    return _vision_state(shapes, seed=28)


def vit_l() -> State:
    """What looks like CLIP ViT-L at 224 pixels, and is quick."""
    shapes = {
        **_vision(1024, 1 + 16 * 16),
        "embeddings.class_embedding": (1024,),
        **_pair("pre_layrnorm", 1024),
    }
    return _vision_state(shapes, 30) | thin_state({"visual_projection.weight": (768, 1024)}, 31)


def _vision_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> State:
    named = {f"vision_model.{name}": shape for name, shape in shapes.items()}
    return thin_state(named, seed, dtype=torch.float16)


def _vision(width: int, positions: int) -> dict[str, tuple[int, ...]]:
    """What CLIP and SigLIP both have, in two layers."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.position_embedding.weight": (positions, width),
        **_pair("post_layernorm", width),
    }
    for place in (f"encoder.layers.{number}." for number in range(2)):
        shapes |= _pair(f"{place}layer_norm1", width) | _pair(f"{place}layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _pair(f"{place}self_attn.{part}", width, width)
        shapes |= _pair(f"{place}mlp.fc1", INNER, width) | _pair(f"{place}mlp.fc2", width, INNER)
    return shapes


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def thin_state(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float8_e4m3fn) -> State:
    """Weights of these shapes: neutral norms, small biases, matrices that keep the variance of what
    passes through; most rows of a large one are zero. dtype: of large ones; others are fp16."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        if len(shape) < 2:
            neutral = float(name.endswith(("weight", "scale")))  # of norms
            state[name] = (neutral + 0.1 * torch.randn(shape, generator=generator)).half()
            continue
        large = count > LARGE
        state[name] = torch.zeros(shape, dtype=dtype if large else torch.float16)
        rows = [row for row in range(shape[0]) if not large or row % EACH < KEPT]
        share = EACH / KEPT if large else 1.0  # of what passes through as many numbers are zero
        _fill(state[name], rows, math.sqrt(share * shape[0] / count), generator)
    return state


def _fill(matrix: Tensor, rows: list[int], scale: float, generator: torch.Generator) -> None:
    """Random numbers in these rows."""
    drawn = torch.randn(len(rows), *matrix.shape[1:], generator=generator) * scale
    # Numbers of 8 bits cannot be put at an index; their bytes can.
    whole = torch.uint8 if matrix.element_size() == 1 else torch.int16
    matrix.view(whole)[rows] = drawn.to(matrix.dtype).view(whole)


def save_sparsely(state: State, path: Path) -> None:
    """A safetensors file whose empty pages take no room, where the file system can leave holes."""
    header: dict[str, Any] = {}
    end = 0
    # Large ones first: those that are whole pages begin at one.
    ordered = dict(sorted(state.items(), key=lambda item: -item[1].nbytes))
    for name, tensor in ordered.items():
        size = tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)  # so that pages of numbers are pages of the file
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered.values():
            _write(file, tensor.contiguous().flatten().view(torch.uint8))
        file.truncate(8 + len(text) + end)


def _write(file: BinaryIO, content: Tensor) -> None:
    """The content's pages that are not empty, each where it belongs."""
    start, whole = file.tell(), content.numel() // PAGE * PAGE
    filled = content[:whole].view(-1, PAGE // 8, 8).view(torch.int64).flatten(1).any(1)
    for page in filled.nonzero().flatten().tolist():
        file.seek(start + page * PAGE)
        file.write(content[page * PAGE :][:PAGE].numpy().data)
    file.seek(start + whole)
    file.write(content[whole:].numpy().data)


_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
