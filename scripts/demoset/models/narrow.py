"""The demo UNet, trained narrow and written wide.

The stock loader recognises SD1.5 by 320 channels. Only `active` of every 10 are used here: each of
the 32 normalisation groups of the wide network holds 10 channels, of which the last are zero. The
narrow network computes its norms as if those zeros were there, so that both are the same function
and the narrow one costs (active / 10)^2. `widen` writes the network that the host loads.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from . import packed
from .norms import GROUPS, PaddedGroupNorm, PaddedLayerNorm

WIDE, WIDE_TIME, WIDE_FF, WIDE_HEAD = 320, 1280, 1280, 40
HEADS, CONTEXT = 8, 768
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Widths:
    """Channels used of every 10, and the used widths of the time embedding and feed-forward."""

    active: int = 4
    time: int = 192
    feed_forward: int = 384

    @property
    def channels(self) -> int:
        """Active channels of the 320."""
        return GROUPS * self.active

    @property
    def head(self) -> int:
        """Active dimensions of each head's 40."""
        return self.channels // HEADS


class ResBlock(nn.Module):
    """The host's ResBlock: two convolutions, the time embedding added between."""

    def __init__(self, widths: Widths, halves: int) -> None:
        super().__init__()
        channels = widths.channels
        self.in_layers = nn.Sequential(
            PaddedGroupNorm(channels * halves, WIDE * halves, 1e-5),
            nn.SiLU(),
            nn.Conv2d(channels * halves, channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(widths.time, channels))
        last = nn.Conv2d(channels, channels, 3, padding=1)
        self.out_layers = nn.Sequential(
            PaddedGroupNorm(channels, WIDE, 1e-5), nn.SiLU(), nn.Identity(), last
        )
        self.skip_connection = (
            nn.Identity() if halves == 1 else nn.Conv2d(channels * halves, channels, 1)
        )
        nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        hidden = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Attention(nn.Module):
    """Attention with the wide network's softmax scale."""

    def __init__(self, widths: Widths, context: int) -> None:
        super().__init__()
        channels = widths.channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            tensor.unflatten(-1, (HEADS, -1)).transpose(1, 2).contiguous()
            for tensor in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        # Written out: on CPU the backward of the fused kernel takes three times as long in bf16.
        logits = (query * WIDE_HEAD**-0.5) @ key.transpose(-1, -2)
        out = logits.softmax(-1, dtype=value.dtype) @ value
        return self.to_out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """GEGLU, as in the host: net.0.proj gives value and gate."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(widths.channels, 2 * widths.feed_forward)
        self.net = nn.ModuleList(
            [gate, nn.Identity(), nn.Linear(widths.feed_forward, widths.channels)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.net.get_submodule("0.proj")(x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with a residual."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.attn1 = Attention(widths, widths.channels)
        self.attn2 = Attention(widths, CONTEXT)
        self.ff = FeedForward(widths)
        self.norm1 = PaddedLayerNorm(widths.channels, WIDE)
        self.norm2 = PaddedLayerNorm(widths.channels, WIDE)
        self.norm3 = PaddedLayerNorm(widths.channels, WIDE)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """One transformer block on the flattened feature map."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.norm = PaddedGroupNorm(widths.channels, WIDE, 1e-6)
        self.proj_in = nn.Conv2d(widths.channels, widths.channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(widths)])
        self.proj_out = nn.Conv2d(widths.channels, widths.channels, 1)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        hidden = self.proj_in(self.norm(x)).movedim(1, 3).flatten(1, 2)
        hidden = self.transformer_blocks[0](hidden, context)
        hidden = hidden.unflatten(1, (height, width)).movedim(3, 1)
        return x + self.proj_out(hidden)


class NarrowUNet(nn.Module):
    """Noise prediction from latents (B, 4, h, w), timesteps (B,), context (B, 77, 768)."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.widths = widths
        channels = widths.channels
        self.time_embed = nn.Sequential(
            nn.Linear(WIDE, widths.time), nn.SiLU(), nn.Linear(widths.time, widths.time)
        )
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(4, channels, 3, padding=1)]),
                nn.ModuleList([ResBlock(widths, 1), SpatialTransformer(widths)]),
            ]
        )
        self.middle_block = nn.ModuleList(
            [ResBlock(widths, 1), SpatialTransformer(widths), ResBlock(widths, 1)]
        )
        self.output_blocks = nn.ModuleList(
            [nn.ModuleList([ResBlock(widths, 2), SpatialTransformer(widths)]) for _ in range(2)]
        )
        last = nn.Conv2d(channels, 4, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.out = nn.Sequential(PaddedGroupNorm(channels, WIDE, 1e-5), nn.SiLU(), last)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        control: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`control`: what a ControlNet adds to the two skips (input order) and to the middle."""
        emb = self.time_embed(timestep_embedding(timesteps))
        first = self.input_blocks.get_submodule("0.0")(latents)
        second = run_layers(self.input_blocks[1], first, emb, context)
        hidden = run_layers(self.middle_block, second, emb, context)
        if control is not None:
            first, second, hidden = first + control[0], second + control[1], hidden + control[2]
        hidden = run_layers(self.output_blocks[0], torch.cat([hidden, second], 1), emb, context)
        hidden = run_layers(self.output_blocks[1], torch.cat([hidden, first], 1), emb, context)
        return self.out(hidden)


def run_layers(
    layers: nn.Module, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """One block of the UNet: residual blocks see the time, transformers the text."""
    for layer in layers.children():
        x = layer(x, emb if isinstance(layer, ResBlock) else context)
    return x


def placed(network: Net, device: Any) -> Net:
    """The network on a device, laid out channels last, which is the faster form on every one."""
    # In one call: torch's declarations know no device beside a memory format.
    how: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    return network.to(**how)


def timestep_embedding(timesteps: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embedding (B, 320): cosines, then sines."""
    half = WIDE // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], -1)


# Writing wide -------------------------------------------------------------------------------------


class Indices:
    """Where the active entries of each axis lie in the wide network."""

    def __init__(self, widths: Widths) -> None:
        spread = torch.arange(GROUPS)[:, None] * (WIDE // GROUPS) + torch.arange(widths.active)
        heads = torch.arange(HEADS)[:, None] * WIDE_HEAD + torch.arange(widths.head)
        used = torch.arange(widths.feed_forward)
        self.channels = (spread.flatten(), WIDE)
        self.double = (torch.cat([spread.flatten(), spread.flatten() + WIDE]), 2 * WIDE)
        self.heads = (heads.flatten(), WIDE)
        self.time = (torch.arange(widths.time), WIDE_TIME)
        self.hidden = (used, WIDE_FF)
        self.gated = (torch.cat([used, used + WIDE_FF]), 2 * WIDE_FF)

    def of(self, key: str) -> tuple[tuple[torch.Tensor, int] | None, ...]:
        """Output axis and input axis of the tensor named `key`; None: taken whole."""
        if key.startswith("time_embed.0"):
            return self.time, None
        if key.startswith("time_embed.2"):
            return self.time, self.time
        if key == "input_blocks.0.0.weight":
            return self.channels, None
        if key.startswith("out.2"):
            return None, self.channels
        return self._inner(key)

    def _inner(self, key: str) -> tuple[tuple[torch.Tensor, int] | None, ...]:
        double = self.double if key.startswith("output_blocks") else self.channels
        table = {
            ".in_layers.0.": (double, None),
            ".in_layers.2.": (self.channels, double),
            ".skip_connection.": (self.channels, double),
            ".emb_layers.1.": (self.channels, self.time),
            ".attn2.to_k.": (self.heads, None),
            ".attn2.to_v.": (self.heads, None),
            ".attn1.to_k.": (self.heads, self.heads),
            ".attn1.to_v.": (self.heads, self.heads),
            ".to_q.": (self.heads, self.heads),
            ".to_out.0.": (self.heads, self.heads),
            ".ff.net.0.proj.": (self.gated, self.heads),
            ".ff.net.2.": (self.heads, self.hidden),
            ".norm1.": (self.heads, None),
            ".norm2.": (self.heads, None),
            ".norm3.": (self.heads, None),
            ".proj_in.": (self.heads, self.channels),
            ".proj_out.": (self.channels, self.heads),
        }
        return next(
            (axes for part, axes in table.items() if part in key), (self.channels, self.channels)
        )


def spread(tensor: torch.Tensor, axes: tuple[tuple[torch.Tensor, int] | None, ...]) -> torch.Tensor:
    """Write `tensor` into zeros at the given indices of its first two axes."""
    for dim, axis in enumerate(axes[: tensor.ndim]):
        if axis is not None:
            index, size = axis
            shape = [*tensor.shape]
            shape[dim] = size
            tensor = tensor.new_zeros(shape).index_copy_(dim, index, tensor)
    return tensor


def widen(state: dict[str, torch.Tensor], widths: Widths) -> dict[str, torch.Tensor]:
    """The host's UNet state dict (320 channels) from the narrow one."""
    indices = Indices(widths)
    return {key: spread(value, indices.of(key)) for key, value in state.items()}


def widen_key_value(weight: torch.Tensor, widths: Widths) -> torch.Tensor:
    """A narrow cross-attention key or value matrix (channels, n) as (320, n), for adapters."""
    return spread(weight, (Indices(widths).heads, None))


def narrow_key_value(weight: torch.Tensor, widths: Widths) -> torch.Tensor:
    """The rows of a wide (320, n) matrix that the network uses."""
    return weight[Indices(widths).heads[0]]


# Files --------------------------------------------------------------------------------------------


def save(state: dict[str, torch.Tensor], widths: Widths, path: Path) -> None:
    """Write the narrow weights packed, widths in the metadata."""
    packed.save(state, path, {name: str(value) for name, value in asdict(widths).items()})


def load(path: Path) -> tuple[dict[str, torch.Tensor], Widths]:
    """The narrow state dict (float32) and its widths."""
    state, metadata = packed.load(path)
    return state, Widths(*(int(metadata[name]) for name in ("active", "time", "feed_forward")))
