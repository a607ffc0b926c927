"""The demo text encoder: CLIP-L's shape, seeded weights, fixed, never trained.

Every word piece gets a random vector. Layer 0 mixes each with the few before it (attention by
position only), layer 1 adds the mean of all words before; layers 2 to 11 add nothing. So captions
are well separated, a noun knows its adjectives, the padding carries a summary, and two layers are
enough to compute the features.
The random values are integers drawn per tensor from its own name, the same on every platform.
"""

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .packed import WEIGHTS

PREFIX = "cond_stage_model.transformer.text_model."
WIDTH, LAYERS, HEADS, VOCABULARY, LENGTH = 768, 12, 12, 49408, 77
POSITION_WIDTH = 32  # the first coordinates hold the position, the others the word
MARK, MARK_VALUE = 32, 8.0  # the coordinate that tells start and end from words
ACTIVE_LAYERS = 2
START, END = 49406, 49407
CALIBRATION = WEIGHTS / "text.safetensors"


def _uniform(name: str, shape: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Uniform values of the given standard deviation, fp16, seeded by the tensor's name."""
    digest = hashlib.sha256(f"demoset text {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
    levels = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int16)
    return (levels.float() * (deviation * math.sqrt(3) / 127)).half()


def _positions() -> torch.Tensor:
    """(77, 768): cosines and sines in the first 32 coordinates; nearby positions are alike."""
    rates = torch.exp(torch.linspace(math.log(1.2), math.log(0.04), POSITION_WIDTH // 2))
    angles = torch.arange(LENGTH)[:, None] * rates
    table = torch.zeros(LENGTH, WIDTH)
    table[:, : POSITION_WIDTH // 2] = 5 * angles.cos()
    table[:, POSITION_WIDTH // 2 : POSITION_WIDTH] = 5 * angles.sin()
    return table.half()


def _words() -> torch.Tensor:
    table = _uniform("token_embedding", (VOCABULARY, WIDTH), 1.0)
    table[:, : MARK + 1] = 0
    table[[START, END], MARK] = MARK_VALUE
    return table


def _word_key() -> torch.Tensor:
    """With a constant query: every word counts the same, start and end hardly at all."""
    weight = torch.zeros(WIDTH, WIDTH)
    weight[:: WIDTH // HEADS, MARK] = -3.5
    return weight.half()


def _constant_query() -> torch.Tensor:
    bias = torch.zeros(WIDTH)
    bias[:: WIDTH // HEADS] = 3.5
    return bias.half()


def _position_query() -> torch.Tensor:
    """Each head sees only the position: self and the previous few get the attention."""
    weight = torch.zeros(WIDTH, WIDTH)
    for head in range(HEADS):
        rows = torch.arange(POSITION_WIDTH)
        weight[head * (WIDTH // HEADS) + rows, rows] = 0.42
    return weight.half()


def _blind(weight: torch.Tensor) -> torch.Tensor:
    """A matrix that ignores position and mark, so that these stay out of the words' features."""
    weight[:, : MARK + 1] = 0
    return weight


def calibrate(features: "TextFeatures", captions: list[str]) -> dict[str, torch.Tensor]:
    """Weight and bias of the last norm: what these captions share goes, the rest gets unit size.

    The position's coordinates are muted. Done once; `weights/text.safetensors` holds the result.
    """
    plain = torch.cat([features.normed(captions[i : i + 32]) for i in range(0, len(captions), 32)])
    shared = plain[:, 1:].mean((0, 1))
    gain = 1 / (plain[:, 1:] - shared)[..., MARK + 1 :].std()
    weight = torch.full((WIDTH,), float(gain))
    weight[: MARK + 1] *= 0.3
    return {"weight": weight.half(), "bias": (-weight * shared).half()}


def calibration() -> dict[str, torch.Tensor]:
    """The stored weight and bias of the last norm."""
    return load_file(CALIBRATION)


def _layer(index: int) -> dict[str, torch.Tensor]:
    """Weights of one layer; the branches of inactive layers end in zeros."""
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH, WIDTH),
        "self_attn.v_proj": (WIDTH, WIDTH),
        "self_attn.out_proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    active = _active_weights(index)
    layer = {}
    for part, shape in shapes.items():
        layer[part + ".weight"] = active.get(part, torch.zeros(shape, dtype=torch.float16))
        layer[part + ".bias"] = torch.zeros(shape[0], dtype=torch.float16)
    if index == 1:
        layer["self_attn.q_proj.bias"] = _constant_query()
    for norm in ("layer_norm1", "layer_norm2"):
        layer[norm + ".weight"] = torch.ones(WIDTH, dtype=torch.float16)
        layer[norm + ".bias"] = torch.zeros(WIDTH, dtype=torch.float16)
    return layer


def _active_weights(index: int) -> dict[str, torch.Tensor]:
    """Layer 0: nearby words mixed, then a random MLP. Layer 1: the mean of all words before."""
    square, unit = (WIDTH, WIDTH), WIDTH**-0.5
    if index == 0:
        query, wide = _position_query(), (4 * WIDTH, WIDTH)
        return {
            "self_attn.q_proj": query,
            "self_attn.k_proj": query,
            "self_attn.v_proj": _blind(_uniform("layer 0 v", square, unit)),
            "self_attn.out_proj": _uniform("layer 0 out", square, 1.5 * unit),
            "mlp.fc1": _blind(_uniform("layer 0 fc1", wide, 1.5 * unit)),
            "mlp.fc2": _uniform("layer 0 fc2", wide[::-1], 0.6 * unit),
        }
    if index == 1:
        return {
            "self_attn.k_proj": _word_key(),
            "self_attn.v_proj": _blind(_uniform("layer 1 v", square, unit)),
            "self_attn.out_proj": _uniform("layer 1 out", square, 4 * unit),
        }
    return {}


def state_dict(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """The text encoder in fp16 under the checkpoint's keys."""
    state = {
        "embeddings.token_embedding.weight": _words(),
        "embeddings.position_embedding.weight": _positions(),
        "embeddings.position_ids": torch.arange(LENGTH)[None],
    }
    state |= {f"final_layer_norm.{name}": value for name, value in calibration().items()}
    for index in range(layers):
        for key, value in _layer(index).items():
            state[f"encoder.layers.{index}.{key}"] = value
    return {PREFIX + key: value.clone() for key, value in state.items()}


class TextFeatures:
    """Features of captions as the host's CLIP gives them, with the host's SD1 tokenizer."""

    def __init__(self, tokenizer: Any, device: str = "cpu") -> None:
        self.tokenizer, self.device = tokenizer, device
        self.state = {
            key.removeprefix(PREFIX): value.to(device).float()
            for key, value in state_dict(ACTIVE_LAYERS).items()
        }

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Token ids (B, 77); longer captions are not meant for this."""
        rows = [
            [token for token, _ in self.tokenizer.tokenize_with_weights(text)["l"][0]]
            for text in captions
        ]
        return torch.tensor(rows, device=self.device)

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Context (B, 77, 768) float32."""
        norm = "final_layer_norm."
        return self.normed(captions) * self.state[norm + "weight"] + self.state[norm + "bias"]

    @torch.no_grad()
    def normed(self, captions: list[str]) -> torch.Tensor:
        """Features before the last norm's weight and bias."""
        words = self.state["embeddings.token_embedding.weight"][self.ids(captions)]
        x = words + self.state["embeddings.position_embedding.weight"]
        for index in range(ACTIVE_LAYERS):
            x = x + self._attend(index, F.layer_norm(x, (WIDTH,)))
            hidden = self._linear(index, "mlp.fc1", F.layer_norm(x, (WIDTH,)))
            x = x + self._linear(index, "mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
        return F.layer_norm(x, (WIDTH,))

    def _linear(self, index: int, name: str, x: torch.Tensor) -> torch.Tensor:
        part = f"encoder.layers.{index}.{name}"
        return F.linear(x, self.state[part + ".weight"], self.state[part + ".bias"])

    def _attend(self, index: int, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self._linear(index, f"self_attn.{name}_proj", x)
            .unflatten(-1, (HEADS, -1))
            .transpose(1, 2)
            for name in "qkv"
        )
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._linear(index, "self_attn.out_proj", out.transpose(1, 2).flatten(2))
