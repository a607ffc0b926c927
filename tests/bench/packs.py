"""Another IP-Adapter pack beside this one, through the nodes that both provide.

Only what a graph can reach is used: IPAdapterModelLoader and IPAdapterAdvanced, and the slots of
the MODEL that comes out.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.hosts.process import host_nodes
from support.hosts.scene import picture
from support.models.adapters import flat
from support.models.unets import build_empty_model, random_adapter
from support.models.vision import tiny_clip_vision
from support.references.interface import defaults

from .calls import SHAPES
from .harness import Bench, Forward, Row, percent

IDS = ("IPAdapterModelLoader", "IPAdapterAdvanced")
EMBED = {False: 48, True: 64}  # widths of the tiny encoder: embeds, hidden states


@dataclass(eq=False)
class Pack:
    """One pack's two nodes."""

    bench: Bench
    nodes: dict[str, Any]
    clip_vision: Any = field(default_factory=lambda: tiny_clip_vision(48, 64))

    def load(self, file: str) -> Any:
        return self._call("IPAdapterModelLoader", ipadapter_file=file)

    def apply(self, model: Any, adapter: Any, weight: float = 1.0) -> Any:
        inputs = {
            **defaults("IPAdapterAdvanced"),
            "model": model,
            "ipadapter": adapter,
            "image": picture(1),
            "weight": weight,
            "clip_vision": self.clip_vision,
        }
        return self._call("IPAdapterAdvanced", **inputs)

    def _call(self, name: str, **inputs: Any) -> Any:
        registered = host_nodes().NODE_CLASS_MAPPINGS
        kept, registered[name] = registered[name], self.nodes[name]
        try:
            return self.bench.host.call(name, **inputs)[0]
        finally:
            registered[name] = kept


def load_peer(bench: Bench, folder: Path) -> Pack:
    """The other pack, loaded as the host loads an installed one."""
    registered = host_nodes().NODE_CLASS_MAPPINGS
    ours = {name: registered.pop(name) for name in bench.host.node_ids}
    try:
        loading = host_nodes().load_custom_node(str(folder), module_parent="custom_nodes")
        if not asyncio.run(loading):
            sys.exit(f"The host could not load {folder}; its log above says why.")
        missing = [name for name in IDS if name not in registered]
        if missing:
            sys.exit(f"{folder} has no node {', '.join(missing)}, by which packs are compared.")
        return Pack(bench, {name: registered[name] for name in IDS})
    finally:
        registered.update(ours)


def peer(bench: Bench) -> Iterator[Row]:
    """Both packs' attention at every block shape of the base, whole UNet, and Apply."""
    if not bench.options.peer:
        sys.exit("peer compares with another pack: add --peer FOLDER, where it is installed.")
    registered = host_nodes().NODE_CLASS_MAPPINGS
    own = Pack(bench, {name: registered[name] for name in IDS})
    packs = {"this pack": own, "peer": load_peer(bench, Path(bench.options.peer).resolve())}
    for plus in (False, True):
        with _adapter_file(bench, plus) as file:
            yield from _measured(bench, packs, file, 16 if plus else 4)


@contextmanager
def _adapter_file(bench: Bench, plus: bool) -> Iterator[str]:
    path = bench.host.models("ipadapter") / f"bench_{'plus' if plus else 'standard'}.safetensors"
    state = random_adapter(bench.geometry, plus=plus, embed_dim=EMBED[plus], dtype=torch.float16)
    save_file(flat(state), path)
    try:
        yield path.name
    finally:
        path.unlink()


def _measured(bench: Bench, packs: dict[str, Pack], file: str, tokens: int) -> Iterator[Row]:
    adapters = {name: pack.load(file) for name, pack in packs.items()}
    empty, weights = build_empty_model(bench.geometry, bench.dtype), count(1)
    patched = {name: pack.apply(empty, adapters[name]) for name, pack in packs.items()}
    for shape in SHAPES:
        if shape[2] in bench.geometry.widths and shape[0].startswith(bench.geometry.name):
            yield _attention(bench, patched, shape, tokens)
    runs = {
        f"{name}{what}": lambda n=name, again=again: packs[n].apply(
            empty, adapters[n] if again else packs[n].load(file), 1 / next(weights)
        )
        for name in packs
        for what, again in ((" first", False), (" again", True))
    }
    took = bench.paired(runs)
    for what in ("first", "again"):
        values = {name: 1e3 * took[f"{name} {what}"] for name in packs}
        yield {"measured": f"Apply {what}, ms", "tokens": tokens, **values}
    yield _forward(bench, packs, adapters, tokens)


def _attention(bench: Bench, patched: dict[str, Any], shape: tuple[Any, ...], tokens: int) -> Row:
    """One call of an attn2 slot of this width, over the host's text attention alone."""
    from comfy.ldm.modules import attention as host_attention

    name, rows, width, heads = shape
    to, side = {"device": bench.device, "dtype": bench.dtype}, int(rows**0.5)
    layout = bench.module("host.bases.unet").read_layout(next(iter(patched.values())))
    layer = next(layer for layer in layout.layers if layer.width == width)
    extra = {
        "n_heads": heads,
        "dim_head": width // heads,
        "cond_or_uncond": [1, 0],
        "original_shape": (2, 4, bench.options.latent, bench.options.latent),
        "activations_shape": (2, width, side, side),
        "block": tuple(layer.block[:2]),
        "block_index": layer.block[2],
        "transformer_index": layer.transformer,
        "sigmas": torch.ones(2, device=bench.device),
        "attn_precision": None,
    }
    query, key, value = (torch.randn(2, n, width, **to) for n in (rows, 77, 77))
    call = host_attention.optimized_attention
    runs: dict[str, Any] = {"text": lambda: call(query, key, value, heads)}
    for pack, model in patched.items():
        slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
        slot = slots.get(tuple(layer.block), slots.get(tuple(layer.block[:2])))
        runs[pack] = lambda slot=slot: slot(query, key, value, extra)
    took = bench.paired(runs)
    added = {pack: percent(took[pack], took["text"]) - 100 for pack in patched}
    return {"measured": f"attention {name}, adds %", "tokens": tokens, **added}


def _forward(bench: Bench, packs: dict[str, Pack], adapters: dict[str, Any], tokens: int) -> Row:
    forward, model = Forward.of(bench), bench.model
    patched = {name: pack.apply(model, adapters[name]) for name, pack in packs.items()}
    runs = {"without": lambda: forward(model)}
    runs |= {name: (lambda p=p: forward(p)) for name, p in patched.items()}
    took = bench.paired(runs)
    added = {name: percent(took[name], took["without"]) - 100 for name in packs}
    return {"measured": "UNet forward, adds %", "tokens": tokens, **added}
