"""A whole UNet, and whole samplings, with and without an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from .harness import Bench, Forward, Row, percent, run_sampler

WINDOW = 16  # frames that a sampler with context windows shows at a time


def unet(bench: Bench) -> Iterator[Row]:
    """A whole UNet forward, batch 2."""
    yield from _beside_none(bench, Forward.of(bench))


def sample(bench: Bench) -> Iterator[Row]:
    """A whole sampling run: text with CFG 4, Euler."""
    steps = bench.options.steps
    for row in _beside_none(bench, lambda model: run_sampler(bench, model, steps)):
        yield {"steps": steps, **row}


def _beside_none(bench: Bench, run: Callable[[Any], Any]) -> Iterator[Row]:
    """A run with no adapter, one of few tokens, one of more."""
    model, adapters = bench.model, [bench.adapter(plus) for plus in (False, True)]
    models = {"without": model}
    models |= {str(a.spec.num_tokens): bench.patched(model, a) for a in adapters}
    took = bench.paired({name: (lambda m=m: run(m)) for name, m in models.items()})
    for adapter in adapters:
        yield {
            **_head(bench, adapter),
            "without s": took["without"],
            "adds %": percent(took[str(adapter.spec.num_tokens)], took["without"]) - 100,
        }


def _head(bench: Bench, adapter: Any) -> Row:
    return {
        "base": bench.geometry.name,
        "latent": bench.options.latent,
        "tokens": adapter.spec.num_tokens,
    }


class Work(TorchDispatchMode):
    """Counts the floating point operations of matrix products and convolutions, and the bytes that
    every operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode composite operations arrive whole
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        if not func.is_view:
            seen = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(
                t.numel() * t.element_size() for t in {id(t): t for t in seen}.values()
            )
        self.flops += self._flops(func, args, kwargs, out)
        return out

    @staticmethod
    def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
        name = func.overloadpacket.__name__.rstrip("_")
        if name.startswith("_scaled_dot_product"):
            return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        counter = flop_registry.get(getattr(torch.ops.aten, name, None))
        return counter(*args, **kwargs, out_val=out) if counter else 0


def work(bench: Bench) -> Iterator[Row]:
    """Counted work of a UNet forward, batch 2, where a clock is too coarse."""
    forward, model = Forward.of(bench), bench.model

    def count(patched: Any) -> Work:
        with Work() as counted:
            forward(patched)
        return counted

    without = count(model)
    for plus in (False, True):
        adapter = bench.adapter(plus)
        with_adapter = count(bench.patched(model, adapter))
        yield {
            **_head(bench, adapter),
            "TFLOP": without.flops / 1e12,
            "adds % of FLOP": percent(with_adapter.flops, without.flops) - 100,
            "GB read and written": without.bytes / 1e9,
            "adds % of bytes": percent(with_adapter.bytes, without.bytes) - 100,
        }


def growth(bench: Bench) -> Iterator[Row]:
    """Time of a UNet forward over the plain one with more adapters, pictures, masks, frames, and
    how much the cost of each exceeds that of the first."""
    model, adapter = bench.model, bench.adapter(False)
    forward = Forward.of(bench)
    masks = torch.ones(8, 64, 64).tril()

    def chained(count: int, mask: bool) -> Any:
        patched = model
        for n in range(count):
            given = masks[n : n + 1] if mask else None
            patched = bench.patched(patched, adapter, mask=given)
        return patched

    eight = range(1, 9)
    cases = {("adapters", n): chained(n, False) for n in eight}
    cases |= {("masks", n): chained(n, True) for n in eight}
    cases |= {
        ("pictures", n): bench.patched(model, adapter, bench.prompt(adapter, n))
        for n in (1, 2, 4, 8, 16, 32, 64)
    }
    runs = {"none": lambda: forward(model)}
    runs |= {f"{what} {n}": (lambda p=patched: forward(p)) for (what, n), patched in cases.items()}
    took = bench.paired(runs)
    for what, n in cases:
        added = took[f"{what} {n}"] - took["none"]
        first = took[f"{what} 1"] - took["none"]
        yield {
            "with": what,
            "number": n,
            "adds ms": 1e3 * added,
            "each over the first": added / n / first,
        }


def frames(bench: Bench) -> Iterator[Row]:
    """A picture for every frame, a window of frames at a time: time and memory of a forward with
    the last window, and what waits on the CPU."""
    model, adapter = bench.model, bench.adapter(False)
    for count in bench.options.frames:
        patched = bench.patched(model, adapter, bench.prompt(adapter, frames=count))
        forward = Forward.of(bench, tuple(range(max(count - WINDOW, 0), max(count, WINDOW))))
        runs = {"without": lambda f=forward: f(model), "with": lambda f=forward, p=patched: f(p)}
        took = bench.paired(runs)
        peak = {name: bench.peak_bytes(run) for name, run in runs.items()}
        slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
        yield {
            "frames": count,
            "forward adds %": percent(took["with"], took["without"]) - 100,
            "forward adds MB": (peak["with"] - peak["without"]) / 1e6,
            "MODEL holds MB": sum(patch.nbytes() for patch in set(slots.values())) / 1e6,
        }
