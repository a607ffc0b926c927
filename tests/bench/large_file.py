"""Reads InstantX's adapter for Flux at its real size: a torch file of 5.3 GB, nearly all holes.

    python scripts/python.py tests/bench/large_file.py [FOLDER]

Prints what each step takes, the most memory that it needs beside what was there before, in memory
of its own and in pages of the file, and what of both stays. Linux only.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # a test has loaded these packages by path
    sys.path[0] = str(ROOT / "tests")
    from bench.identify import load

    load("ipadapter", ROOT / "ipadapter")

from support.models.transformers import FLUX_DEV, Geometry  # noqa: E402

from ipadapter.adapters.adapter import Adapter  # noqa: E402
from ipadapter.adapters.checkpoint import read_checkpoint  # noqa: E402
from ipadapter.adapters.prompt import ImagePrompt  # noqa: E402
from ipadapter.attention.weight_types import Weighting  # noqa: E402
from ipadapter.bases.flux import FLUX, flux_layout  # noqa: E402

MB = 1e6
EMBED, TOKENS = 1152, 128


def sparse_instantx(path: Path, geometry: Geometry = FLUX_DEV, tokens: int = TOKENS) -> Path:
    """The published file's keys, shapes and numbers' type; where the numbers would be are holes."""
    from support.models.transformer_adapters import SHAPES_ONLY, instantx

    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in instantx(geometry, EMBED, tokens, SHAPES_ONLY).items():
        half, _, name = key.partition(".")
        nested[half][name] = torch.empty(value.shape, dtype=torch.bfloat16)
    with torch.serialization.skip_data():
        torch.save(nested, path)
    return path


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    found = {name: text for name, _, text in (line.partition(":") for line in lines)}
    own, mapped = (int(found[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    return own, mapped


@dataclass(frozen=True)
class Used:
    """What one step took. own, mapped: bytes at its peak, beside what was there before it."""

    seconds: float
    own: int
    mapped: int
    result: Any


def used(step: Callable[[], Any]) -> Used:
    """Run a step, and look at the memory every few milliseconds."""
    before, most, ended = resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.003):
            most[:] = map(max, most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    try:
        result = step()
    finally:
        seconds = time.perf_counter() - begun
        ended.set()
        watcher.join()
    own, mapped = (max(0, peak - start) for peak, start in zip(most, before, strict=True))
    return Used(seconds, own, mapped, result)


def measure(path: Path, geometry: Geometry = FLUX_DEV) -> Iterator[tuple[str, Used]]:
    """The steps of loading and applying a file of `geometry`'s shapes."""
    loaded = used(lambda: Adapter.from_checkpoint(read_checkpoint(path)))
    yield "load", loaded
    adapter: Adapter = loaded.result
    projected = used(lambda: adapter.tokens(torch.zeros(1, EMBED)))
    yield "tokens", projected
    sizes = geometry.width, geometry.heads, geometry.double, geometry.single
    layout, prompt = flux_layout(FLUX, *sizes), ImagePrompt(projected.result, projected.result)
    weighting = Weighting((1.0,))
    yield (
        "keys and values",
        used(lambda: list(adapter.fold(layout, prompt, weighting, "cpu", torch.bfloat16))),
    )


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        path = sparse_instantx(Path(folder) / "ip-adapter.bin")
        print(f"{path.stat().st_size / 1e9:.2f} GB, {torch.get_num_threads()} threads")
        begin = resident()
        for name, took in measure(path):
            stays = [(now - then) / MB for now, then in zip(resident(), begin, strict=True)]
            print(
                f"{name:16} {took.seconds:6.1f} s, peak {took.own / MB:4.0f} MB own + "
                f"{took.mapped / MB:4.0f} MB of the file; stays {stays[0]:4.0f} + {stays[1]:4.0f}"
            )


if __name__ == "__main__":
    main()
