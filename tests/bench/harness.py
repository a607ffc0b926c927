"""What every measurement shares: the host, random models, adapters and inputs, paired runs."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from support.hosts.applied import applied
from support.models import unets
from torch import Tensor

Row = dict[str, Any]
Run = Callable[[], Any]
GEOMETRIES = {"sd15": unets.FULL_SD15, "sdxl": unets.FULL_SDXL, "tiny": unets.TINY_SD15}


@dataclass(frozen=True)
class Bench:
    """The host, the pack and the options."""

    host: Any
    options: argparse.Namespace

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.float16

    @property
    def geometry(self) -> unets.Geometry:
        return GEOMETRIES[self.options.base]

    @cached_property
    def model(self) -> Any:
        """A MODEL of the chosen base with random weights, on the chosen device."""
        if self.device.type == "cpu":
            return unets.build_model(self.geometry)
        config = {**unets.host_config(self.geometry), "dtype": self.dtype}
        model = unets.patcher(unets.host_unet(config, str(self.device)), config)
        for parameter in model.model.diffusion_model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        model.load_device = model.offload_device = self.device
        return model

    def module(self, name: str) -> Any:
        return self.host.module(f"ipadapter.{name}")

    def adapter(self, plus: bool, geometry: Any = None, embed_dim: int = 48) -> Any:
        """An adapter for the chosen base, or another geometry, with random weights."""
        state = unets.random_adapter(geometry or self.geometry, plus=plus, embed_dim=embed_dim)
        checkpoint = self.module("adapters.checkpoint").checkpoint_from_dict(
            state, "random adapter"
        )
        return self.module("adapters.adapter").Adapter.from_checkpoint(checkpoint)

    def prompt(self, adapter: Any, images: int = 1, frames: int = 1) -> Any:
        """An image prompt of several pictures, or of one for each of several frames."""
        g = torch.Generator().manual_seed(1)
        tokens, dim = adapter.spec.num_tokens, adapter.spec.token_dim
        cond = torch.randn(frames, images * tokens, dim, generator=g)
        return self.module("adapters.prompt").ImagePrompt(
            cond, torch.randn(1, tokens, dim, generator=g)
        )

    def patched(
        self, model: Any, adapter: Any, prompt: Any = None, mask: Any = None, weight: float = 1.0
    ) -> Any:
        """A MODEL with an adapter."""
        weighting = self.module("attention.weight_types").Weighting((weight,))
        prompt = prompt or self.prompt(adapter)
        return applied(self.module, model, adapter, prompt, weighting, mask=mask)

    def paired(self, runs: Mapping[str, Run], repeat: int | None = None) -> dict[str, float]:
        """Median seconds of each run; the runs take turns, so that a drift of the machine
        hits all alike."""
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(repeat or self.options.repeat):
            for name, run in runs.items():
                times[name].append(self.seconds(run))
        return {name: statistics.median(values) for name, values in times.items()}

    def seconds(self, run: Run) -> float:
        """How long one run takes, on the GPU to its end."""
        self.settle()
        begin = time.perf_counter()
        run()
        self.settle()
        return time.perf_counter() - begin

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self, run: Run) -> int:
        """The most memory a run allocates at a time, over what was there: CUDA's own count, or on
        the CPU every allocation and release that torch's profiler sees. A mapped file is none."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run()
            return torch.cuda.max_memory_allocated(self.device) - before
        entries = [
            e["args"] | {"ts": e["ts"]}
            for e in profile(run, memory=True)
            if e["name"] == "[memory]"
        ]
        counted = [entry for entry in entries if not entry["Total Reserved"]]
        first = min(counted, key=lambda entry: entry["ts"])
        before = first["Total Allocated"] - first["Bytes"]
        return max(entry["Total Allocated"] for entry in counted) - before


def profile(run: Run, memory: bool = False) -> list[dict[str, Any]]:
    """The trace events of one run."""
    with torch.profiler.profile(profile_memory=memory) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text("utf-8"))["traceEvents"]


@dataclass(frozen=True, eq=False)
class Forward:
    """One call of the UNet with CFG: as many negative rows as positive ones."""

    bench: Bench
    latents: Tensor
    context: Tensor
    y: Tensor | None
    items: tuple[int, ...]

    @classmethod
    def of(cls, bench: Bench, items: tuple[int, ...] = (0,)) -> Forward:
        """items: which latents of a longer batch these are."""
        geometry, rows, size = bench.geometry, 2 * len(items), bench.options.latent
        to = {"device": bench.device, "dtype": bench.dtype}
        return cls(
            bench,
            torch.randn(rows, 4, size, size, **to),
            torch.randn(rows, 77, geometry.context_dim, **to),
            torch.randn(rows, geometry.adm, **to) if geometry.adm else None,
            items,
        )

    def __call__(self, model: Any) -> Tensor:
        rows, call = self.latents.shape[0], self.bench.module("attention.rows")
        options = {
            **model.model_options["transformer_options"],
            "cond_or_uncond": [1, 0],
            call.CALL_KEY: call.CallState((False, True), self.items, rows),
        }
        times = torch.full((rows,), 500.0, device=self.bench.device)
        return model.model.diffusion_model(
            self.latents, times, self.context, y=self.y, transformer_options=options
        )


def run_sampler(bench: Bench, model: Any, steps: int) -> Tensor:
    """Sampling as the host's KSampler does it, with CFG, from noise."""
    import comfy.sample

    geometry, size = bench.geometry, bench.options.latent
    g = torch.Generator().manual_seed(1)
    latents = torch.zeros(1, 4, size, size)
    noise = torch.randn(latents.shape, generator=g)

    def text() -> list[Any]:
        states = torch.randn(1, 77, geometry.context_dim, generator=g)
        return [[states, {"pooled_output": torch.randn(1, 1280, generator=g)}]]

    return comfy.sample.sample(
        model, noise, steps, 4.0, "euler", "normal", text(), text(), latents, disable_pbar=True
    )


def percent(part: float, whole: float) -> float:
    return 100 * part / whole
