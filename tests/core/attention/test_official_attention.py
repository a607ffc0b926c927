"""Our folded image attention against the official package's attention processors, fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.references.official import official
from torch import Tensor

from ipadapter.attention.decoupled import add_image_attention, image_attention
from ipadapter.attention.folding import EmbedsScaling, KeyValue, fold
from ipadapter.attention.weight_types import LayerRule, Source

WIDTH, CONTEXT, HEADS = 64, 48, 4
LORA_SCALE = 0.6


def seeded(make: Any) -> Any:
    """A module built with seeded random weights; the global state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


def cross_attention() -> Any:
    from diffusers.models.attention_processor import Attention

    return seeded(lambda: Attention(WIDTH, CONTEXT, heads=HEADS, dim_head=WIDTH // HEADS))


def inputs(tokens: int) -> list[Tensor]:
    """Hidden states, text states and image tokens."""
    g = torch.Generator().manual_seed(0)
    sizes = ((30, WIDTH), (7, CONTEXT), (tokens, CONTEXT))
    return [torch.randn(2, rows, dim, generator=g) for rows, dim in sizes]


def ours(layer: Any, processor: Any, scale: float, given: list[Tensor]) -> Tensor:
    """The same cross-attention by the pack: weight folded into the values, queries shared."""
    hidden, text, image = given
    pair = KeyValue(processor.to_k_ip(image), processor.to_v_ip(image))
    sources = {Source.IMAGE: pair, Source.NEGATIVE: pair}
    folded = fold(sources, (LayerRule(scale),), EmbedsScaling.V_ONLY, torch.float32)
    assert folded is not None
    base = image_attention(layer.to_q(hidden), layer.to_k(text), layer.to_v(text), HEADS)
    query = layer.to_q(hidden)
    both = add_image_attention(base, query, folded.cond.key, folded.cond.value, HEADS)
    return layer.to_out[0](both)


@pytest.mark.parametrize("name", ["IPAttnProcessor", "IPAttnProcessor2_0"])
@pytest.mark.parametrize(("tokens", "scale"), [(4, 1.0), (16, 0.6)])
def test_a_cross_attention_equals_the_official_one(name: str, tokens: int, scale: float) -> None:
    kind = getattr(official("attention_processor"), name)
    layer = cross_attention()
    processor = seeded(lambda: kind(WIDTH, CONTEXT, scale=scale, num_tokens=tokens))
    given = inputs(tokens)
    with torch.no_grad():
        expected = processor(layer, given[0], torch.cat(given[1:], dim=1))
        assert (ours(layer, processor, scale, given) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("tokens", "scale"), [(4, 1.0), (6, 0.7)])
def test_a_faceid_attention_with_its_lora_equals_the_official_one(
    tokens: int, scale: float
) -> None:
    kind = official("attention_processor_faceid").LoRAIPAttnProcessor
    layer = cross_attention()
    processor = seeded(
        lambda: kind(WIDTH, CONTEXT, rank=8, lora_scale=LORA_SCALE, scale=scale, num_tokens=tokens)
    )
    g = torch.Generator().manual_seed(2)
    given = inputs(tokens)
    with torch.no_grad():
        for part in ("q", "k", "v", "out"):
            lora = getattr(processor, f"to_{part}_lora")
            lora.up.weight.copy_(torch.randn(lora.up.weight.shape, generator=g) * 0.1)
        expected = processor(layer, given[0], torch.cat(given[1:], dim=1))
        for part, linear in (("q", layer.to_q), ("k", layer.to_k), ("v", layer.to_v)):
            lora = getattr(processor, f"to_{part}_lora")
            linear.weight += LORA_SCALE * lora.up.weight @ lora.down.weight
        out = processor.to_out_lora
        layer.to_out[0].weight += LORA_SCALE * out.up.weight @ out.down.weight
        assert (ours(layer, processor, scale, given) - expected).abs().max() < 1e-5
