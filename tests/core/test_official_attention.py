"""Our folded image attention against the official package's attention processors, fp32."""

from __future__ import annotations

import pytest
import torch
from support.official import official

from ipadapter.attention import add_image_attention, image_attention
from ipadapter.folding import EmbedsScaling, KeyValue, fold
from ipadapter.layers import LayerRule, Source

WIDTH, CONTEXT, HEADS = 64, 48, 4


@pytest.mark.parametrize("name", ["IPAttnProcessor", "IPAttnProcessor2_0"])
@pytest.mark.parametrize(("tokens", "scale"), [(4, 1.0), (16, 0.6)])
def test_a_cross_attention_equals_the_official_one(name: str, tokens: int, scale: float) -> None:
    from diffusers.models.attention_processor import Attention

    processors = official("attention_processor")
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = Attention(WIDTH, CONTEXT, heads=HEADS, dim_head=WIDTH // HEADS)
        processor = getattr(processors, name)(WIDTH, CONTEXT, scale=scale, num_tokens=tokens)
    hidden, text, image = (
        torch.randn(2, n, dim, generator=g)
        for n, dim in ((30, WIDTH), (7, CONTEXT), (tokens, CONTEXT))
    )
    with torch.no_grad():
        expected = processor(layer, hidden, torch.cat([text, image], dim=1))
        query, key, value = layer.to_q(hidden), layer.to_k(text), layer.to_v(text)
        pair = KeyValue(processor.to_k_ip(image), processor.to_v_ip(image))
        sources = {Source.IMAGE: pair, Source.NEGATIVE: pair}
        folded = fold(sources, (LayerRule(scale),), EmbedsScaling.V_ONLY, torch.float32)
        assert folded is not None
        base = image_attention(query, key, value, HEADS)
        both = add_image_attention(base, query, folded.cond.key, folded.cond.value, HEADS)
        found = layer.to_out[0](both)
    assert (found - expected).abs().max() < 1e-5
