"""Projectors: image or face embeddings to ip_tokens.

The attribute names are the checkpoints' own. Modules are built without storage and take the file's
tensors as they are, so nothing is initialised only to be overwritten, and the random number
generators stay untouched.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import Problem
from ..files.tensors import Shapes
from .linear import Linear, pieces

HEAD_DIM = 64


class ImageProjModel(nn.Module):
    """Standard family: one pooled embedding to a few tokens.

    https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/ip_adapter.py#L28
    """

    def __init__(self, embed_dim: int, num_tokens: int, token_dim: int) -> None:
        super().__init__()
        self.proj = Linear(embed_dim, num_tokens * token_dim)
        self.norm = nn.LayerNorm(token_dim)

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> ImageProjModel:
        """The module that takes tensors of these shapes."""
        rows, embed_dim = shapes["proj.weight"]
        (token_dim,) = shapes["norm.weight"]
        return cls(embed_dim, rows // token_dim, token_dim)

    @staticmethod
    def shapes(tokens: int, embed_dim: int, token_dim: int, _dim: int, _depth: int) -> Shapes:
        """Shapes of a new one, as far as its dimensions are read from them."""
        return {"proj.weight": (tokens * token_dim, embed_dim), "norm.weight": (token_dim,)}

    def forward(self, image_embeds: Tensor) -> Tensor:
        """(images, embed_dim) -> (images, num_tokens, token_dim)"""
        tokens = self.proj(image_embeds)
        return self.norm(tokens.unflatten(-1, (-1, self.norm.normalized_shape[0])))


class MLPProjModel(nn.Module):
    """Full Face: one token per patch.

    https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/ip_adapter.py#L49
    """

    def __init__(self, embed_dim: int, inner_dim: int, token_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            Linear(embed_dim, inner_dim),
            nn.GELU(),
            Linear(inner_dim, token_dim),
            nn.LayerNorm(token_dim),
        )

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> MLPProjModel:
        """The module that takes tensors of these shapes."""
        inner_dim, embed_dim = shapes["proj.0.weight"]
        return cls(embed_dim, inner_dim, shapes["proj.3.weight"][0])

    def forward(self, hidden: Tensor) -> Tensor:
        """(images, patches, embed_dim) -> (images, patches, token_dim)"""
        return self.proj(hidden)


class PerceiverAttention(nn.Module):
    """Latents attend to the features and to themselves.

    https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/resampler.py#L34
    """

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        if inner_dim % HEAD_DIM:
            raise ValueError(f"to_q has {inner_dim} rows, expected a multiple of {HEAD_DIM}")
        self.heads = inner_dim // HEAD_DIM
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = Linear(dim, inner_dim, bias=False)
        self.to_kv = Linear(dim, inner_dim * 2, bias=False)
        self.to_out = Linear(inner_dim, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
        """features (images, patches, dim), latents (images, queries, dim), mask (images, 1,
        1, patches + queries)"""
        features, latents = self.norm1(features), self.norm2(latents)
        query = self.to_q(latents)
        key, value = self.to_kv(torch.cat((features, latents), dim=1)).chunk(2, dim=-1)
        query, key, value = (
            rearrange(x, "b l (h d) -> b h l d", h=self.heads) for x in (query, key, value)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(rearrange(out, "b h l d -> b l (h d)"))


def _feed_forward(dim: int, inner_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        Linear(dim, inner_dim, bias=False),
        nn.GELU(),
        Linear(inner_dim, dim, bias=False),
    )


class Perceiver(nn.Module):
    """Latents that read features through a stack of attention layers.

    Subclasses say where the latents come from.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        output_dim, dim = shapes["proj_out.weight"]
        depth = sum(1 for key in shapes if key.endswith(".0.to_q.weight"))
        self.proj_in = Linear(shapes["proj_in.weight"][1], dim)
        self.proj_out = Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    PerceiverAttention(dim, shapes[f"layers.{i}.0.to_q.weight"][0]),
                    _feed_forward(dim, shapes[f"layers.{i}.1.1.weight"][0]),
                )
            )
            for i in range(depth)
        )

    def read(self, latents: Tensor, features: Tensor, keep: Tensor | None) -> Tensor:
        """latents (images, queries, dim), features (images, patches, embed_dim), keep (images,
        patches) bool
        -> (images, queries, output_dim). Features that are not kept have no influence at all."""
        features = self.proj_in(features)
        mask = None
        if keep is not None:
            seen = keep.to(device=features.device, dtype=torch.bool)
            mask = F.pad(seen, (0, latents.shape[1]), value=True)[:, None, None]
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = attention(features, latents, mask) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


class Resampler(Perceiver):
    """Plus families: learned latents read the encoder's hidden states (or a raw face embedding).

    https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/resampler.py#L81
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(shapes)
        self.latents = nn.Parameter(torch.empty(shapes["latents"]))

    @staticmethod
    def shapes(tokens: int, embed_dim: int, token_dim: int, dim: int, depth: int) -> Shapes:
        """Shapes of a new one, as far as its dimensions are read from them. dim: inner width; 0 for
        the official one, that of the text context and 1280 at most."""
        dim = dim or min(token_dim, 1280)
        shapes: dict[str, tuple[int, ...]] = {
            "latents": (1, tokens, dim),
            "proj_in.weight": (dim, embed_dim),
            "proj_out.weight": (token_dim, dim),
        }
        for layer in range(depth):
            shapes[f"layers.{layer}.0.to_q.weight"] = (max(dim // HEAD_DIM, 1) * HEAD_DIM, dim)
            shapes[f"layers.{layer}.1.1.weight"] = (4 * dim, dim)
        return shapes

    def forward(self, hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """(images, patches, embed_dim), keep (images, patches) bool -> (images, num_tokens,
        token_dim)

        A patch that is not kept is dropped: the result is that of hidden states without it.
        """
        if hidden.ndim == 2:
            hidden = hidden[:, None]
        if keep is not None and keep.shape != hidden.shape[:2]:
            raise ValueError(
                f"The mask of the reference has the shape {tuple(keep.shape)}, expected one value "
                f"per image and patch, {tuple(hidden.shape[:2])}."
            )
        return self.read(self.latents.expand(hidden.shape[0], -1, -1), hidden, keep)


class FaceIDProjModel(nn.Module):
    """FaceID and Portrait: one face embedding to tokens.

    https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/ip_adapter_faceid.py#L64
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        inner_dim, face_dim = shapes["proj.0.weight"]
        self.proj = nn.Sequential(
            Linear(face_dim, inner_dim),
            nn.GELU(),
            Linear(inner_dim, shapes["proj.2.weight"][0]),
        )
        self.norm = nn.LayerNorm(shapes["norm.weight"][0])

    def forward(self, face_embeds: Tensor) -> Tensor:
        """(faces, face_dim) -> (faces, num_tokens, token_dim)"""
        tokens = self.proj(face_embeds)
        return self.norm(tokens.unflatten(-1, (-1, self.norm.normalized_shape[0])))


class FaceIDPlusProjModel(FaceIDProjModel):
    """FaceID Plus: the face's tokens are the latents that read the encoder's hidden states
    of the face crop.

    https://github.com/tencent-ailab/IP-Adapter/blob/62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2/ip_adapter/ip_adapter_faceid.py#L85
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(shapes)
        prefix = "perceiver_resampler."
        self.perceiver_resampler = Perceiver(
            {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        face_embeds: Tensor,
        hidden: Tensor,
        scale: float | Tensor = 1.0,
        shortcut: bool = False,
        keep: Tensor | None = None,
    ) -> Tensor:
        """face_embeds (faces, face_dim), hidden (faces, patches, embed_dim)
        -> (faces, num_tokens, token_dim)

        v1 gives what the perceiver read; v2 (`shortcut`) gives the face's tokens plus `scale` times
        that; scale: a number, or (1 or faces, 1, 1).
        """
        latents = super().forward(face_embeds)
        read = self.perceiver_resampler.read(latents, hidden, keep)
        return latents + scale * read if shortcut else read


def require_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """ValueError if a tensor has NaN or infinite values."""
    for key, value in tensors.items():
        if value.device.type != "meta" and not _finite(value):
            raise Problem.FILE_BROKEN(
                f"{name}: '{key}' has NaN or infinite values; the file is damaged or was converted "
                "badly. Download it again."
            )


def _finite(value: Tensor) -> bool:
    """Whether all is finite. A sum is not if one of its terms is not."""
    return all(torch.isfinite(piece.sum()) for _, piece in pieces(value, value.device))
