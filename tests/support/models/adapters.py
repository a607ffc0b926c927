"""Synthetic adapters with the real keys and shapes of every family (random, seeded weights)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ipadapter.adapters.families import Family
from ipadapter.adapters.wiring import Wiring
from ipadapter.bases.unet import BASES

UNET_FAMILIES = tuple(family for family in Family if family.row.wiring is Wiring.UNET)

Nested = dict[str, dict[str, torch.Tensor]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Geometry:
    """The dimensions that the families' projectors are made from."""

    token_dim: int
    layer_widths: tuple[int, ...]
    latent_dim: int  # of the Resampler
    inner_dim: int  # heads * 64 of the Resampler
    hidden: int  # of the image encoder
    pooled: int
    face_dim: int = 512
    depth: int = 4
    lora_rank: int = 128


def _runs(*runs: tuple[int, int]) -> tuple[int, ...]:
    return tuple(width for width, count in runs for _ in range(count))


# Widths of UNets with 32 model channels, in id order (input, output, middle).
_TINY_SD1 = _runs((32, 2), (64, 2), (128, 5), (64, 3), (32, 3), (128, 1))
_TINY_SDXL = _runs((64, 4), (128, 50), (64, 6), (128, 10))
_TINY_WIDTHS = {
    "SD1.5": _TINY_SD1,
    "SD2": _TINY_SD1,
    "SDXL": _TINY_SDXL,
    "Kolors": _TINY_SDXL,
}


def geometry(base: str, tiny: bool = False) -> Geometry:
    """Dimensions of a base's official adapters; `tiny` keeps the structure at small widths."""
    if tiny:
        return Geometry(64, _TINY_WIDTHS[base], 64, 128, 80, 48, depth=2, lora_rank=4)
    if base == "Kolors":
        return Geometry(*BASES["SDXL"], 2048, 768, 1024, 768)
    token_dim, widths = BASES[base]
    latent_dim = 768 if token_dim == 768 else 1280
    return Geometry(token_dim, widths, latent_dim, latent_dim, 1280, 1024)


def synthetic_adapter(
    family: Family | str,
    base: str,
    tiny: bool = False,
    device: str = "meta",
    seed: int = 0,
    **changes: Any,
) -> Nested:
    """{"image_proj": {...}, "ip_adapter": {...}} in fp32 (fp16 with dtype=torch.float16).

    `changes` replace fields of the Geometry, such as `pooled=1280` for ViT-bigG; and `num_tokens`,
    `lora=False`, `dtype`.
    """
    family = Family(family)
    dtype = changes.pop("dtype", torch.float32)
    lora = changes.pop("lora", family in LORA_FAMILIES)
    num_tokens = changes.pop("num_tokens", None) or _TOKENS.get(family, 4)
    g = Geometry(**{**vars(geometry(base, tiny)), **changes})
    shapes = {
        "image_proj": _PROJECTORS[family](g, num_tokens),
        "ip_adapter": layer_shapes(g, bool(lora)),
    }
    generator = torch.Generator().manual_seed(seed)
    return {
        half: {key: _tensor(key, shape, device, generator).to(dtype) for key, shape in part.items()}
        for half, part in shapes.items()
    }


def flat(nested: Nested, layers: str = "ip_adapter") -> dict[str, torch.Tensor]:
    """The flat keys of a safetensors file; `layers` may be "adapter_modules"."""
    prefixes = {"image_proj": "image_proj.", "ip_adapter": f"{layers}."}
    return {
        prefixes[half] + key: value for half, part in nested.items() for key, value in part.items()
    }


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in tensors.items()}


LORA_FAMILIES = (
    Family.FACEID,
    Family.FACEID_PLUS,
    Family.FACEID_PLUS_V2,
    Family.KOLORS_FACEID_PLUS,
)
_TOKENS = {
    Family.PLUS: 16,
    Family.KOLORS_PLUS: 16,
    Family.PORTRAIT: 16,
    Family.PORTRAIT_UNNORM: 16,
    Family.KOLORS_FACEID_PLUS: 6,
}


def _tensor(
    key: str, shape: tuple[int, ...], device: str, generator: torch.Generator
) -> torch.Tensor:
    if device == "meta":
        return torch.empty(shape, device="meta")
    values = torch.randn(shape, generator=generator)
    if "norm" in key or len(shape) == 1:
        return 1 + 0.1 * values if key.endswith("weight") else 0.1 * values
    return values * shape[-1] ** -0.5


def layer_shapes(g: Geometry, lora: bool) -> Shapes:
    """to_k_ip and to_v_ip per cross-attention; `lora` adds low-rank pairs for every attention."""
    shapes: Shapes = {}
    for index, width in enumerate(g.layer_widths):
        if lora:
            shapes |= _lora_pairs(2 * index, width, width, g.lora_rank)
            shapes |= _lora_pairs(2 * index + 1, width, g.token_dim, g.lora_rank)
        for kind in ("to_k_ip", "to_v_ip"):
            shapes[f"{2 * index + 1}.{kind}.weight"] = (width, g.token_dim)
    return shapes


def _lora_pairs(number: int, width: int, context: int, rank: int) -> Shapes:
    shapes: Shapes = {}
    for kind, inputs in (("q", width), ("k", context), ("v", context), ("out", width)):
        shapes[f"{number}.to_{kind}_lora.down.weight"] = (rank, inputs)
        shapes[f"{number}.to_{kind}_lora.up.weight"] = (width, rank)
    return shapes


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _perceiver(g: Geometry, dim: int, inner: int, embed_dim: int, output_dim: int) -> Shapes:
    shapes = _linear("proj_in", dim, embed_dim) | _linear("proj_out", output_dim, dim)
    shapes |= _norm("norm_out", output_dim)
    for i in range(g.depth):
        shapes |= _norm(f"layers.{i}.0.norm1", dim) | _norm(f"layers.{i}.0.norm2", dim)
        shapes |= _linear(f"layers.{i}.0.to_q", inner, dim, bias=False)
        shapes |= _linear(f"layers.{i}.0.to_kv", 2 * inner, dim, bias=False)
        shapes |= _linear(f"layers.{i}.0.to_out", dim, inner, bias=False)
        shapes |= _norm(f"layers.{i}.1.0", dim)
        shapes |= _linear(f"layers.{i}.1.1", 4 * dim, dim, bias=False)
        shapes |= _linear(f"layers.{i}.1.3", dim, 4 * dim, bias=False)
    return shapes


def _standard(g: Geometry, num_tokens: int) -> Shapes:
    return _linear("proj", num_tokens * g.token_dim, g.pooled) | _norm("norm", g.token_dim)


def _full_face(g: Geometry, num_tokens: int) -> Shapes:
    shapes = _linear("proj.0", g.hidden, g.hidden) | _linear("proj.2", g.token_dim, g.hidden)
    return shapes | _norm("proj.3", g.token_dim)


def _plus(g: Geometry, num_tokens: int) -> Shapes:
    latents = {"latents": (1, num_tokens, g.latent_dim)}
    return latents | _perceiver(g, g.latent_dim, g.inner_dim, g.hidden, g.token_dim)


def _unnorm(g: Geometry, num_tokens: int) -> Shapes:
    latents = {"latents": (1, num_tokens, g.latent_dim)}
    return latents | _perceiver(g, g.latent_dim, g.inner_dim, g.face_dim, g.token_dim)


def _faceid(g: Geometry, num_tokens: int) -> Shapes:
    shapes = _linear("proj.0", 2 * g.face_dim, g.face_dim)
    shapes |= _linear("proj.2", num_tokens * g.token_dim, 2 * g.face_dim)
    return shapes | _norm("norm", g.token_dim)


def _faceid_plus(g: Geometry, num_tokens: int, latent_factor: int = 1) -> Shapes:
    dim = latent_factor * g.token_dim
    shapes = _linear("proj.0", 2 * g.face_dim, g.face_dim)
    shapes |= _linear("proj.2", num_tokens * dim, 2 * g.face_dim) | _norm("norm", dim)
    perceiver = _perceiver(g, dim, dim, g.hidden, dim)
    return shapes | {f"perceiver_resampler.{key}": shape for key, shape in perceiver.items()}


def _kolors_faceid_plus(g: Geometry, num_tokens: int) -> Shapes:
    return _faceid_plus(g, num_tokens, latent_factor=2)


_PROJECTORS = {
    Family.STANDARD: _standard,
    Family.PLUS: _plus,
    Family.FULL_FACE: _full_face,
    Family.FACEID: _faceid,
    Family.FACEID_PLUS: _faceid_plus,
    Family.FACEID_PLUS_V2: _faceid_plus,
    Family.PORTRAIT: _faceid,
    Family.PORTRAIT_UNNORM: _unnorm,
    Family.KOLORS_PLUS: _plus,
    Family.KOLORS_FACEID_PLUS: _kolors_faceid_plus,
}
