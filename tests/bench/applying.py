"""Loading an adapter from disk and applying it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.models.adapters import flat, synthetic_adapter
from support.models.unets import build_empty_model

from .harness import Bench, Row, run_sampler

PATCHES = 257  # what ViT-H gives of a picture


@dataclass(frozen=True, eq=False)
class Stored:
    """A Plus adapter of the official shapes in a file, and a MODEL without weights to
    apply it to."""

    bench: Bench
    path: Path

    def read(self) -> None:
        """The file, once, into memory."""
        self.path.read_bytes()

    def forget(self) -> None:
        """Have the system drop the file from memory."""
        with self.path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def adapter(self) -> Any:
        checkpoint = self.bench.module("adapters.checkpoint").read_checkpoint(self.path)
        return self.bench.module("adapters.adapter").Adapter.from_checkpoint(checkpoint)

    @cached_property
    def model(self) -> Any:
        return build_empty_model(self.bench.geometry)

    @cached_property
    def features(self) -> tuple[Any, Any]:
        """What an encoder gives of one picture, and of none."""
        embeds, spec = self.bench.module("pictures.embeds"), self.bench.module("adapters.spec")
        g = torch.Generator().manual_seed(2)
        hidden = torch.randn(2, 1, PATCHES, self.adapter().spec.embed_dim, generator=g)
        image, nothing = (embeds.ImageEmbeds(h, spec.EmbedSource.HIDDEN) for h in hidden)
        return image, nothing

    def apply(self, adapter: Any, weight: float = 1.0) -> Any:
        """What an Apply node does after encoding: project the picture, then every layer."""
        requests, apply = self.bench.module("apply.request"), self.bench.module("host.apply")
        return apply.run(
            requests.Request(
                model=self.model,
                ipadapter=adapter,
                pos_embed=self.features[0],
                neg_embed=self.features[1],
                weight=weight,
            )
        )


@contextmanager
def stored(bench: Bench) -> Iterator[Stored]:
    """An adapter file in a temporary folder (`--folder` says where)."""
    with tempfile.TemporaryDirectory(dir=bench.options.folder) as folder:
        path = Path(folder) / "adapter.safetensors"
        save_file(_tensors(bench), path)
        os.sync()  # what is not on disk cannot be dropped from memory
        yield Stored(bench, path)


def _tensors(bench: Bench) -> dict[str, torch.Tensor]:
    tiny = bench.options.base == "tiny"
    base = "SD1.5" if tiny else bench.geometry.name
    return flat(synthetic_adapter("Plus", base, tiny, device="cpu", dtype=torch.float16))


def _slots_bytes(patched: Any) -> int:
    slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    return sum(patch.nbytes() for patch in set(slots.values()))


def apply(bench: Bench) -> Iterator[Row]:
    """Apply from a file, first time and with another weight, beside reading the file once."""
    with stored(bench) as file:
        used, weights = file.adapter(), count(1)

        def warm() -> Any:
            return file.apply(used, 1 / next(weights))

        def cold() -> Any:
            return file.apply(file.adapter())

        took = bench.paired({"read": file.read, "cold": cold, "warm": warm})
        from_disk = {"read": [], "cold": []}
        for _ in range(min(bench.options.repeat, 3)):
            for name, run in (("read", file.read), ("cold", cold)):
                file.forget()
                from_disk[name].append(bench.seconds(run))
        disk = {name: sorted(times)[len(times) // 2] for name, times in from_disk.items()}
        yield {
            "base": bench.geometry.name,
            "file MB": file.path.stat().st_size / 1e6,
            "from disk: read ms": disk["read"] * 1e3,
            "apply ms": disk["cold"] * 1e3,
            "from memory: read ms": took["read"] * 1e3,
            "first apply ms": took["cold"] * 1e3,
            "other weight ms": took["warm"] * 1e3,
        }


def load(bench: Bench) -> Iterator[Row]:
    """Loading an adapter: its header, then its projector, which is read at first use."""
    with stored(bench) as file:
        took = bench.paired(
            {
                "read": file.read,
                "open": file.adapter,
                "projector": lambda: file.adapter().projector,
            }
        )
        yield {
            "base": bench.geometry.name,
            "file MB": file.path.stat().st_size / 1e6,
            "read file ms": took["read"] * 1e3,
            "load ms": took["open"] * 1e3,
            "projector ms": (took["projector"] - took["open"]) * 1e3,
        }


def memory(bench: Bench) -> Iterator[Row]:
    """What a patched MODEL holds, and the most that is allocated at a time by Apply and by
    sampling. `--no-sampling` leaves out the latter, which needs the UNet's weights."""
    with stored(bench) as file:
        adapter = file.adapter()
        file.apply(file.adapter())  # what is made once and serves every adapter is there
        size, patched = file.path.stat().st_size, []
        peak = bench.peak_bytes(lambda: patched.append(file.apply(adapter)))
        row = {
            "base": bench.geometry.name,
            "file MB": size / 1e6,
            "MODEL holds MB": _slots_bytes(patched[0]) / 1e6,
            "adapter keeps MB": adapter.recent.nbytes() / 1e6,
            "Apply peak MB": peak / 1e6,
            "Apply peak, part of file": peak / size,
        }
    if bench.options.sampling:
        model = bench.model
        with_adapter = bench.patched(model, bench.adapter(True))
        peaks = [
            bench.peak_bytes(lambda m=m: run_sampler(bench, m, bench.options.steps))
            for m in (model, with_adapter)
        ]
        row["sampling peak MB"] = peaks[0] / 1e6
        row["adapter adds MB"] = (peaks[1] - peaks[0]) / 1e6
    yield row
