"""What an image prompt costs, measured against the same run without it.

    python scripts/python.py tests/bench/run.py attention        one cross-attention call, every
    block shape python scripts/python.py tests/bench/run.py unet --base sd15 a whole UNet forward
    python scripts/python.py tests/bench/run.py apply --base sdxl cold and warm Apply, memory
    python scripts/python.py tests/bench/run.py encode           1, 16 and 128 pictures
    python scripts/python.py tests/bench/run.py growth           with adapters, pictures, frames,
    masks python scripts/python.py tests/bench/run.py imports          import time of the pack over
    the host's

`--json` prints the figures as JSON, `--threads N` sets torch's threads, `--repeat N` the runs of
each. Runs are paired (with, without, with ...), figures are medians and ratios of medians. Random
weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
Row = dict[str, Any]


def paired(runs: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median seconds of each run; the runs take turns, so that a drift of the machine hits all
    alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeat):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


@dataclass(frozen=True)
class Bench:
    """The host, the pack and the options."""

    host: Any
    options: argparse.Namespace

    def module(self, name: str) -> Any:
        return self.host.module(f"ipadapter.{name}")

    def adapter(self, geometry: Any, plus: bool, embed_dim: int = 48) -> Any:
        from support.unets import random_adapter

        state = random_adapter(geometry, plus=plus, embed_dim=embed_dim)
        checkpoint = self.module("checkpoint").checkpoint_from_dict(state, "random adapter")
        return self.module("adapter").Adapter.from_checkpoint(checkpoint)

    def prompt(self, adapter: Any, images: int = 1) -> Any:
        import torch

        g = torch.Generator().manual_seed(1)
        tokens, dim = adapter.spec.num_tokens, adapter.spec.token_dim
        cond = torch.randn(1, images * tokens, dim, generator=g)
        return self.module("prompt").ImagePrompt(cond, torch.randn(1, tokens, dim, generator=g))

    def patched(self, model: Any, adapter: Any, prompt: Any, mask: Any = None) -> Any:
        apply, plan = self.module("host.apply"), self.module("plan").Plan()
        return apply.apply_prompt(model, adapter, prompt, plan, apply.When(mask=mask))


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
    """One cross-attention call: text alone, plus a second such call, plus this pack's way."""
    for name, rows, width, heads in SHAPES:
        for batch in bench.options.batch:
            for tokens in (4, 16, 64, 257):
                runs = _attention_runs(bench, (batch, rows, width, heads, tokens))
                took = paired(runs, bench.options.repeat)
                yield {
                    "block": name,
                    "batch": batch,
                    "tokens": tokens,
                    "text ms": took["text"] * 1e3,
                    "second call adds %": 100 * took["second"] / took["text"],
                    "this pack adds %": 100 * took["ours"] / took["text"],
                }


def _attention_runs(bench: Bench, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    import torch
    from comfy.ldm.modules import attention as host_attention

    batch, rows, width, heads, tokens = shape
    add = bench.module("attention").add_image_attention
    query, key, value, base = (torch.randn(batch, n, width) for n in (rows, 77, 77, rows))
    ip_key, ip_value = (torch.randn(2, tokens, width) for _ in range(2))
    many = [tensor.repeat_interleave(batch // 2, 0) for tensor in (ip_key, ip_value)]
    call = host_attention.optimized_attention
    return {
        "text": lambda: call(query, key, value, heads),
        "second": lambda: base.add_(call(query, *many, heads)),
        "ours": lambda: add(base, query, ip_key, ip_value, heads),
    }


def geometry_of(base: str) -> Any:
    from support import unets

    return {"sd15": unets.FULL_SD15, "sdxl": unets.FULL_SDXL, "tiny": unets.TINY_SD15}[base]


def unet(bench: Bench) -> Iterator[Row]:
    """A whole UNet forward, batch 2, with and without an adapter."""
    import torch
    from support.unets import build_model

    geometry = geometry_of(bench.options.base)
    model = build_model(geometry)
    size = bench.options.latent
    latents = torch.randn(2, 4, size, size)
    context = torch.randn(2, 77, geometry.context_dim)
    y = torch.randn(2, geometry.adm) if geometry.adm else None

    def forward(patched: Any) -> Any:
        options = {**patched.model_options["transformer_options"], "cond_or_uncond": [1, 0]}
        call = bench.module("call")
        options[call.CALL_KEY] = call.CallState((False, True), (0,), 2)
        times = torch.full((2,), 500.0)
        return patched.model.diffusion_model(
            latents, times, context, y=y, transformer_options=options
        )

    for plus in (False, True):
        adapter = bench.adapter(geometry, plus)
        patched = bench.patched(model, adapter, bench.prompt(adapter))
        runs = {"without": lambda: forward(model), "with": lambda p=patched: forward(p)}
        took = paired(runs, bench.options.repeat)
        yield {
            "base": geometry.name,
            "latent": size,
            "tokens": adapter.spec.num_tokens,
            "without s": took["without"],
            "adds %": 100 * (took["with"] / took["without"] - 1),
        }


def apply(bench: Bench) -> Iterator[Row]:
    """Cold and warm Apply from a file on disk, and what stays in memory."""
    import torch
    from safetensors.torch import save_file
    from support.unets import build_empty_model, random_adapter

    geometry = geometry_of(bench.options.base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        state = random_adapter(geometry, plus=True, embed_dim=1280, dtype=torch.float16)
        flat = {f"{part}.{key}": value for part in state for key, value in state[part].items()}
        save_file(flat, path)
        del state, flat
        gc.collect()
        model = build_empty_model(geometry)
        checkpoints, plans = bench.module("checkpoint"), bench.module("plan")
        applies, adapters = bench.module("host.apply"), bench.module("adapter")

        def read() -> None:
            path.read_bytes()

        def cold() -> Any:
            adapter = adapters.Adapter.from_checkpoint(checkpoints.read_checkpoint(path))
            return bench.patched(model, adapter, bench.prompt(adapter))

        adapter = adapters.Adapter.from_checkpoint(checkpoints.read_checkpoint(path))
        prompt = bench.prompt(adapter)

        def warm() -> Any:
            plan = plans.Plan((time.perf_counter() % 1,))
            return applies.apply_prompt(model, adapter, prompt, plan, applies.When())

        took = paired({"read": read, "cold": cold, "warm": warm}, bench.options.repeat)
        slots = warm().model_options["transformer_options"]["patches_replace"]["attn2"]
        held = sum(patch.nbytes() for patch in {id(p): p for p in slots.values()}.values())
        yield {
            "base": geometry.name,
            "file MB": path.stat().st_size / 1e6,
            "read file ms": took["read"] * 1e3,
            "cold apply ms": took["cold"] * 1e3,
            "warm apply ms": took["warm"] * 1e3,
            "MODEL holds MB": held / 1e6,
            "adapter keeps MB": adapter.recent.nbytes() / 1e6,
        }


def encode(bench: Bench) -> Iterator[Row]:
    """Encoding pictures with a tiny encoder: what the pack adds to the encoder itself, and what is
    saved."""
    import torch
    from support.vision import tiny_clip_vision

    vision, spec = bench.module("host.vision"), bench.module("spec")
    for count in (1, 16, 128):
        encoder = tiny_clip_vision()
        pictures = torch.rand(count, 256, 384, 3)

        def fresh(images: Any = pictures, encoder: Any = encoder) -> Any:
            vision._RECENT.clear()
            return vision.encode(encoder, images, spec.EmbedSource.POOLED)

        def again(images: Any = pictures, encoder: Any = encoder) -> Any:
            return vision.encode(encoder, images, spec.EmbedSource.POOLED)

        took = paired({"fresh": fresh, "again": again}, bench.options.repeat)
        yield {"pictures": count, "fresh ms": took["fresh"] * 1e3, "again ms": took["again"] * 1e3}


def growth(bench: Bench) -> Iterator[Row]:
    """Forward time of a tiny UNet with more adapters, pictures, frames and masks, over the plain
    one."""
    import torch
    from support.unets import TINY_SD15, build_model

    model = build_model(TINY_SD15)
    adapter = bench.adapter(TINY_SD15, False)
    call = bench.module("call")
    latents, context = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 64)
    state = call.CallState((False, True), (0,), 2)

    def forward(patched: Any) -> Any:
        options = {**patched.model_options["transformer_options"], call.CALL_KEY: state}
        times = torch.full((2,), 500.0)
        return patched.model.diffusion_model(latents, times, context, transformer_options=options)

    def chained(count: int, mask: Any = None) -> Any:
        patched = model
        for _ in range(count):
            patched = bench.patched(patched, adapter, bench.prompt(adapter), mask)
        return patched

    mask = torch.ones(1, 64, 64)
    cases = {
        **{f"{n} adapters": chained(n) for n in (1, 2, 4, 8)},
        **{f"{n} masks": chained(n, mask) for n in (1, 8)},
        **{
            f"{n} pictures": bench.patched(model, adapter, bench.prompt(adapter, n))
            for n in (4, 16, 64)
        },
    }
    runs = {"none": lambda: forward(model)}
    runs |= {name: (lambda p=patched: forward(p)) for name, patched in cases.items()}
    took = paired(runs, bench.options.repeat)
    for name in cases:
        yield {"with": name, "adds ms": 1e3 * (took[name] - took["none"])}


def imports(bench: Bench) -> Iterator[Row]:
    """Import time of the pack in a process that has the host."""
    code = (
        "import sys, time, asyncio; sys.argv = ['main.py', '--cpu']\n"
        "import comfy.options; comfy.options.enable_args_parsing()\n"
        "import nodes; asyncio.run(nodes.init_public_apis()); import comfy_api.latest\n"
        "import comfy.sd, comfy.clip_vision, comfy.hooks, node_helpers\n"
        "begin = time.perf_counter()\n"
        f"asyncio.run(nodes.load_custom_node({str(ROOT)!r}, module_parent='custom_nodes'))\n"
        "print('SECONDS', time.perf_counter() - begin)\n"
        "print('HEAVY', [m for m in ('transformers', 'insightface', 'diffusers') if m in "
        "sys.modules])"
    )
    times, heavy = [], ""
    for _ in range(bench.options.repeat):
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
        ).stdout
        times.append(float(found.split("SECONDS ")[1].split()[0]))
        heavy = found.split("HEAVY ")[1].strip()
    yield {"import ms": 1e3 * statistics.median(times), "heavy packages in the process": heavy}


COMMANDS = {
    command.__name__: command for command in (attention, unet, apply, encode, growth, imports)
}


def start(options: argparse.Namespace) -> Bench:
    sys.path.insert(0, str(TESTS))
    from support import host

    return Bench(host.start(Path(tempfile.mkdtemp())), options)


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    cells = [
        {
            key: f"{value:.2f}" if isinstance(value, float) else str(value)
            for key, value in row.items()
        }
        for row in rows
    ]
    widths = {key: max(len(key), *(len(row[key]) for row in cells)) for key in cells[0]}
    print("  ".join(key.rjust(width) for key, width in widths.items()))
    for row in cells:
        print("  ".join(row[key].rjust(width) for key, width in widths.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--base", choices=("sd15", "sdxl", "tiny"), default="sd15")
    parser.add_argument("--latent", type=int, default=64, help="side of the latent")
    parser.add_argument("--batch", type=int, nargs="*", default=[2])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bench = start(options)
    import torch

    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        rows = list(COMMANDS[options.command](bench))
    print(json.dumps(rows, indent=1)) if options.json else show(rows)


if __name__ == "__main__":
    main()
