"""SD3.5's projector and layers, which depend on the noise level: nothing of them can be folded
before sampling, so they stay a model that the host loads and frees.

Attribute names are the checkpoint's own.
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/models/embeddings.py#L2493
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..files.tensors import Shapes
from .linear import LayerNorm, Linear
from .wiring import KEY_NORM, normed_key

HEAD_DIM = 64


class TimeEmbedding(nn.Module):
    """A timestep, 0 to 1000, as a vector: cosines and sines, then two layers."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        outer, self.waves = shapes["time_embedding.linear_1.weight"]
        self.linear_1 = Linear(self.waves, outer)
        self.linear_2 = Linear(outer, outer)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """(1,) -> (1, width)"""
        half = self.waves // 2
        places = torch.arange(half, device=timestep.device, dtype=torch.float32)
        angles = timestep.float()[:, None] * torch.exp(places * (-math.log(10000.0) / half))
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.linear_2(functional.silu(self.linear_1(waves)))


class TimedAttention(nn.Module):
    """Latents attend to the features and to themselves."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.heads = inner // HEAD_DIM
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.to_q = Linear(dim, inner, bias=False)
        self.to_kv = Linear(dim, 2 * inner, bias=False)
        self.to_out = Linear(inner, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """features (images, patches, dim), latents (images, queries, dim)"""
        latents = self.norm2(latents) * (1 + scale) + shift
        key, value = self.to_kv(torch.cat([self.norm1(features), latents], 1)).chunk(2, dim=-1)
        query, key, value = (
            rearrange(x, "b l (h d) -> b h l d", h=self.heads)
            for x in (self.to_q(latents), key, value)
        )
        out = functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(rearrange(out, "b h l d -> b l (h d)"))


class TimedBlock(nn.ModuleList):
    """Attention, a feed-forward layer with its norm, and the shifts and scales of both by time."""

    def __init__(self, dim: int, inner: int) -> None:
        feed_forward = nn.Sequential(
            LayerNorm(dim),
            Linear(dim, 4 * dim, bias=False),
            nn.GELU(),
            Linear(4 * dim, dim, bias=False),
        )
        by_time = nn.Sequential(nn.SiLU(), Linear(dim, 4 * dim))
        super().__init__((TimedAttention(dim, inner), feed_forward, by_time))

    def forward(self, features: Tensor, latents: Tensor, moment: Tensor) -> Tensor:
        """features (images, patches, dim), latents (images, queries, dim), moment (1, dim) ->
        latents"""
        attention, feed_forward, by_time = self
        shift, scale, shift_after, scale_after = by_time(moment)[:, None].chunk(4, dim=-1)
        latents = attention(features, latents, shift, scale) + latents
        norm, *deeper = feed_forward.children()
        inner = norm(latents) * (1 + scale_after) + shift_after
        for layer in deeper:
            inner = layer(inner)
        return inner + latents


class TimeResampler(nn.Module):
    """Learned latents read the encoder's hidden states, at a noise level."""

    def __init__(self, shapes: Shapes) -> None:
        """shapes: of the file's tensors."""
        super().__init__()
        dim, embed_dim = shapes["proj_in.weight"]
        output_dim = shapes["proj_out.weight"][0]
        depth = sum(1 for key in shapes if key.endswith(".0.to_q.weight"))
        self.latents = nn.Parameter(torch.empty(shapes["latents"]))
        self.proj_in = Linear(embed_dim, dim)
        self.proj_out = Linear(dim, output_dim)
        self.norm_out = LayerNorm(output_dim)
        self.time_embedding = TimeEmbedding(shapes)
        self.layers = nn.ModuleList(
            TimedBlock(dim, shapes[f"layers.{n}.0.to_q.weight"][0]) for n in range(depth)
        )

    def forward(self, features: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(images, patches, embed_dim), (1,) -> tokens (images, queries, output_dim), and the
        timestep's vector (1, dim)."""
        moment = self.time_embedding(timestep, features.dtype)
        features = self.proj_in(features) + moment[:, None]
        latents = self.latents.to(features).expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(features, latents, moment)
        return self.norm_out(self.proj_out(latents)), moment


class TimedNorm(nn.Module):
    """A norm whose shift and scale come from the timestep's vector."""

    def __init__(self, dim: int, time_dim: int) -> None:
        super().__init__()
        self.linear = Linear(time_dim, 2 * dim)

    def forward(self, tokens: Tensor, moment: Tensor) -> Tensor:
        """tokens: (images, tokens, dim); moment: (1, time_dim)"""
        shift, scale = self.linear(functional.silu(moment))[:, None].chunk(2, dim=-1)
        return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


class TimedLayer(nn.Module):
    """A layer's keys and values. norm_q, norm_k: what the block's own queries and keys are
    normalised with."""

    def __init__(self, shapes: Shapes, number: int) -> None:
        super().__init__()
        width, dim = shapes[f"{number}.to_k_ip.weight"]
        self.norm_ip = TimedNorm(dim, shapes[f"{number}.norm_ip.linear.weight"][1])
        self.to_k_ip = Linear(dim, width, bias=False)
        self.to_v_ip = Linear(dim, width, bias=False)
        for name in ("norm_q", "norm_k", "norm_ip_k"):
            weight = nn.Parameter(torch.empty(shapes[f"{number}.{name}.weight"]))
            self.add_module(name, nn.ParameterDict({"weight": weight}))

    def forward(self, tokens: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (images, tokens, width) each."""
        tokens = self.norm_ip(tokens, moment)
        key = normed_key(self.to_k_ip(tokens).float(), self.get_parameter(KEY_NORM))
        return key.to(tokens.dtype), self.to_v_ip(tokens)


class TimedAdapter(nn.Module):
    """Projector and layers together. Keys are the file's: `image_proj.*`, `ip_adapter.*`."""

    def __init__(self, image_proj: Shapes, ip_adapter: Shapes) -> None:
        """image_proj, ip_adapter: shapes of the file's tensors."""
        super().__init__()
        count = len({key.partition(".")[0] for key in ip_adapter})
        self.image_proj = TimeResampler(image_proj)
        self.ip_adapter = nn.ModuleList(TimedLayer(ip_adapter, number) for number in range(count))

    def forward(self, features: Tensor, timestep: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of one layer after another. features: (images, patches, embed_dim);
        timestep: (1,), 0 to 1000."""
        tokens, moment = self.image_proj(features, timestep)
        for layer in self.ip_adapter:
            yield layer(tokens, moment)
