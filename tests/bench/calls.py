"""One cross-attention call at every block shape."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .harness import Bench, Row, Run, percent

# (name, queries at 512 or 1024 px, width, heads)
SHAPES = (
    ("SD1.5 64x64", 4096, 320, 8),
    ("SD1.5 32x32", 1024, 640, 8),
    ("SD1.5 16x16", 256, 1280, 8),
    ("SD1.5 8x8", 64, 1280, 8),
    ("SDXL 64x64", 4096, 640, 10),
    ("SDXL 32x32", 1024, 1280, 20),
)


def attention(bench: Bench) -> Iterator[Row]:
    """One call: text alone, plus a second such call with ready keys, plus this pack's way."""
    for name, rows, width, heads in SHAPES:
        for batch in bench.options.batch:
            for tokens in bench.options.tokens:
                took = bench.paired(_runs(bench, (batch, rows, width, heads, tokens)))
                yield {
                    "block": name,
                    "batch": batch,
                    "tokens": tokens,
                    "text ms": took["text"] * 1e3,
                    "second call adds %": percent(took["second"], took["text"]),
                    "this pack adds %": percent(took["ours"], took["text"]),
                }


def _runs(bench: Bench, shape: tuple[int, ...]) -> dict[str, Run]:
    from comfy.ldm.modules import attention as host_attention

    batch, rows, width, heads, tokens = shape
    to = {"device": bench.device, "dtype": bench.dtype}
    add = bench.module("attention.decoupled").add_image_attention
    query, key, value, base = (torch.randn(batch, n, width, **to) for n in (rows, 77, 77, rows))
    ip_key, ip_value = (torch.randn(2, tokens, width, **to) for _ in range(2))
    many = [tensor.repeat_interleave(batch // 2, 0) for tensor in (ip_key, ip_value)]
    call = host_attention.optimized_attention
    return {
        "text": lambda: call(query, key, value, heads),
        "second": lambda: base.add_(call(query, *many, heads)),
        "ours": lambda: add(base, query, ip_key, ip_value, heads),
    }
