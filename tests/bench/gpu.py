"""What a GPU has to be asked: waiting for it, and its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from support.hosts.applied import applied

from .harness import Bench, Row, percent, profile, run_sampler

# What makes the processor wait for the GPU, as torch's profiler names it.
WAITS = (
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cudaStreamSynchronize",
)
READ = "aten::_local_scalar_dense"  # a number read from a tensor, which waits on every device


def gpu(bench: Bench) -> Iterator[Row]:
    """A short sampling run with and without an adapter: time, waits for the GPU, memory.

    The adapter acts in a part of the sampling, so that the noise level has to be known: one read
    for each call of the model is allowed, none for each layer. Its ends become noise levels when a
    run begins: what that reads does not grow with the steps.
    """
    steps, model = bench.options.steps, bench.model
    for plus in (False, True):
        adapter = bench.adapter(plus)
        patched = _in_range(bench, model, adapter)
        runs = {
            "without": lambda: run_sampler(bench, model, steps),
            "with": lambda p=patched: run_sampler(bench, p, steps),
        }
        took = bench.paired(runs)
        peaks = {name: bench.peak_bytes(run) for name, run in runs.items()}
        more, twice = (_more_waits(bench, model, patched, count) for count in (steps, 2 * steps))
        each = {name: (twice[name] - more[name]) / steps for name in more}
        layers = len(bench.geometry.widths)
        yield {
            "device": str(bench.device),
            "base": bench.geometry.name,
            "latent": bench.options.latent,
            "tokens": adapter.spec.num_tokens,
            "without s": took["without"],
            "adds %": percent(took["with"], took["without"]) - 100,
            "more reads, per step": each["reads"],
            "per layer": each["reads"] // layers,
            "when a run begins": more["reads"] - steps * each["reads"],
            "more waits, per step": "not applicable"
            if bench.device.type == "cpu"
            else each["waits"],
            "adds MB": (peaks["with"] - peaks["without"]) / 1e6,
        }


def _in_range(bench: Bench, model: Any, adapter: Any) -> Any:
    weighting = bench.module("attention.weight_types").Weighting()
    when = {"start_at": 0.01, "end_at": 0.99}
    return applied(bench.module, model, adapter, bench.prompt(adapter), weighting, **when)


def _more_waits(bench: Bench, model: Any, patched: Any, steps: int) -> dict[str, int]:
    """What a run of `steps` steps waits for more than the same run without the adapter."""
    without, waits = (
        _waits(bench, lambda m=m: run_sampler(bench, m, steps)) for m in (model, patched)
    )
    return {name: waits[name] - without[name] for name in waits}


def _waits(bench: Bench, run: Any) -> dict[str, int]:
    def settled() -> None:
        run()
        bench.settle()  # one wait in every run, so none in the difference

    names = [event.get("name", "") for event in profile(settled)]
    return {"reads": names.count(READ), "waits": sum(name in WAITS for name in names)}
