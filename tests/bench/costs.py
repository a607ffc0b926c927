"""Encoding pictures, and importing the pack."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from support.hosts.process import ROOT

from .harness import Bench, Row


def encode(bench: Bench) -> Iterator[Row]:
    """Encoding pictures with a tiny encoder: what the pack adds to the encoder itself, and
    what is saved."""
    from support.models.vision import tiny_clip_vision

    vision, spec = bench.module("host.encode"), bench.module("adapters.spec")
    for count in (1, 16, 128):
        encoder = tiny_clip_vision()
        pictures = torch.rand(count, 256, 384, 3)

        def fresh(images: Any = pictures, encoder: Any = encoder) -> Any:
            vision._RECENT.clear()
            return vision.encode(encoder, images, spec.EmbedSource.POOLED)

        def again(images: Any = pictures, encoder: Any = encoder) -> Any:
            return vision.encode(encoder, images, spec.EmbedSource.POOLED)

        took = bench.paired({"fresh": fresh, "again": again})
        yield {"pictures": count, "fresh ms": took["fresh"] * 1e3, "again ms": took["again"] * 1e3}


# The host reads every pack's pyproject.toml with a module of its own, which is no pack's cost.
_IMPORT = """
import sys, time, asyncio; sys.argv = ["main.py", "--cpu"]
import comfy.options; comfy.options.enable_args_parsing()
import nodes; asyncio.run(nodes.init_public_apis()); import comfy_api.latest
import comfy.sd, comfy.clip_vision, comfy.hooks, node_helpers, comfy_config.config_parser
before, begin = set(sys.modules), time.perf_counter()
asyncio.run(nodes.load_custom_node({root!r}, module_parent="custom_nodes"))
print("SECONDS", time.perf_counter() - begin)
heavy = ("transformers", "insightface", "diffusers")
print("HEAVY", [name for name in heavy if name in set(sys.modules) - before])
"""


def imports(bench: Bench) -> Iterator[Row]:
    """Import time of the pack in a process that has the host, from the second start on."""
    times, heavy = [], ""
    command = [sys.executable, "-c", _IMPORT.format(root=str(ROOT))]
    host = os.environ["COMFYUI_PATH"]  # Python looks there first, not in the pack's folder
    for _ in range(1 + bench.options.repeat):
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=host).stdout
        times.append(float(found.split("SECONDS ")[1].split()[0]))
        heavy = found.split("HEAVY ")[1].strip()
    yield {"import ms": 1e3 * statistics.median(times[1:]), "heavy packages imported": heavy}
