"""Image prompts in transformers: what a step costs more, counted and timed, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from unittest import mock

import torch
from support.hosts.applied import applied
from support.models.transformer_adapters import SHAPES_ONLY, instantx, sd3, xlabs
from support.models.transformers import (
    FLUX_DEV,
    SD35_LARGE,
    TINY_FLUX,
    TINY_SD3,
    Geometry,
    random_model,
)
from torch import Tensor

from .harness import Bench, Row, percent
from .models import Work

CARRIER = "ip_adapter_carrier"  # among the transformer options
HALF = 2  # bytes of a number that a MODEL of this size carries
TEXT = {"Flux": 512, "SD3": 154}  # rows of text, as the host's text encoders give them
ROWS = {"Flux": 1, "SD3": 2}  # Flux.1 is sampled at cfg 1, SD3.5 above


@dataclass(frozen=True)
class Kind:
    """A published adapter. file: its tensors for a geometry. features: shape of what an encoder
    gives of a picture; narrow where no step sees them. tokens: that the adapter makes of it. size:
    of its projector."""

    name: str
    geometry: Geometry
    file: Callable[..., dict[str, Tensor]]
    features: tuple[int, ...]
    tokens: int
    size: Mapping[str, int]

    def at(self, tiny: bool) -> Kind:
        """The same, or small."""
        if not tiny:
            return self
        geometry = TINY_SD3 if self.geometry.kind == "SD3" else TINY_FLUX
        return replace(self, geometry=geometry, features=(*self.features[:-1], 48), size={})


KINDS = (
    Kind("XLabs v1", FLUX_DEV, xlabs, (1, 48), 4, {}),
    Kind("XLabs v2", FLUX_DEV, xlabs, (1, 48), 16, {}),
    Kind("InstantX", FLUX_DEV, instantx, (1, 48), 128, {}),
    Kind("SD3.5", SD35_LARGE, sd3, (1, 729, 1152), 64, {"dim": 1280}),
)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a transformer with some of its blocks. latent: side of its latents."""

    bench: Bench
    kind: Kind
    double: int
    single: int
    latent: int
    device: str = "cpu"

    @property
    def geometry(self) -> Geometry:
        return replace(self.kind.geometry, double=self.double, single=self.single)

    @cached_property
    def plain(self) -> Any:
        return random_model(self.geometry, self.device)

    @cached_property
    def patched(self) -> Any:
        """The same MODEL with the adapter."""
        module, features = self.bench.module, self.kind.features
        state = self.kind.file(self.geometry, features[-1], self.kind.tokens, **self.kind.size)
        checkpoint = module("adapters.checkpoint").checkpoint_from_dict(state, "random adapter")
        adapter = module("adapters.adapter").Adapter.from_checkpoint(checkpoint)
        cond, uncond = (adapter.tokens(torch.randn(features)) for _ in range(2))
        prompt = module("adapters.prompt").ImagePrompt(cond, uncond)
        weighting = module("attention.weight_types").Weighting((1.0,))
        return applied(module, self.plain, adapter, prompt, weighting)

    def __call__(self, model: Any) -> Any:
        """Run it once."""
        kind, geometry = self.geometry.kind, self.geometry
        to: dict[str, Any] = {"device": self.device}
        rows = ROWS[kind]
        options = {
            **model.model_options["transformer_options"],
            "wrappers": model.wrappers,  # the host puts them there when a sampling begins
            "cond_or_uncond": [1, 0][-rows:],
            "sigmas": torch.full((1,), 0.6),  # where numbers can be read from
        }
        given = {"guidance": torch.full((rows,), 3.5, **to)} if kind == "Flux" else {}
        return model.model.apply_model(
            torch.randn(rows, geometry.channels, self.latent, self.latent, **to),
            torch.full((rows,), 0.6, **to),
            c_crossattn=torch.randn(rows, TEXT[kind], geometry.text_dim, **to),
            y=torch.randn(rows, geometry.pooled, **to),
            transformer_options=options,
            **given,
        )

    def work(self) -> Tensor:
        """FLOP and bytes of a call, then those that the adapter adds."""
        counts: list[Tensor] = []
        for model in (self.plain, self.patched):
            with _pytorch_attention(), Work() as counted:
                self(model)
            counts.append(torch.tensor([counted.flops, counted.bytes], dtype=torch.float64))
        return torch.stack([counts[0], counts[1] - counts[0]])


@contextmanager
def _pytorch_attention() -> Iterator[None]:
    """The host's choice on a GPU: that on a CPU asks how much memory is free."""
    import comfy.ldm.flux.math
    import comfy.ldm.modules.diffusionmodules.mmdit as sd3_blocks
    from comfy.ldm.modules.attention import attention_pytorch

    name = "optimized_attention"
    with (
        mock.patch.object(comfy.ldm.flux.math, name, attention_pytorch),
        mock.patch.object(sd3_blocks, name, attention_pytorch),
    ):
        yield


def transformers(bench: Bench) -> Iterator[Row]:
    """Every published adapter: counted work of a whole step, and times of a block of each kind."""
    tiny = bench.options.base == "tiny"
    for kind in (kind.at(tiny) for kind in KINDS):
        single = 1 if kind.geometry.single else 0
        timed = Step(bench, kind, 1, single, bench.options.latent)
        plain, patched = timed.plain, timed.patched
        took = bench.paired({"without": partial(timed, plain), "with": partial(timed, patched)})
        counts = {times: _whole(bench, kind, times * bench.options.latent) for times in (1, 2)}
        whole, added = counts[1]
        yield {
            "adapter": kind.name,
            "tokens": kind.tokens,
            "pixels": 8 * bench.options.latent,
            "TFLOP": float(whole[0]) / 1e12,
            "adds % of FLOP": percent(float(added[0]), float(whole[0])),
            "adds % of bytes": percent(float(added[1]), float(whole[1])),
            "of FLOP at twice the side": percent(float(counts[2][1][0]), float(counts[2][0][0])),
            "blocks s": took["without"],
            "adds % of time": percent(took["with"], took["without"]) - 100,
            "MODEL holds MB": _held(kind, patched) / 1e6,
        }


def _whole(bench: Bench, kind: Kind, latent: int) -> Tensor:
    """Work of all blocks, from that of one and of two of a kind, which are all alike."""
    geometry = kind.geometry

    def counted(double: int, single: int) -> Tensor:
        return Step(bench, kind, double, single, latent, "meta").work()

    some = 1 if geometry.single else 0
    one = counted(1, some)
    whole = one + (geometry.double - 1) * (counted(2, some) - one)
    return whole + (geometry.single - 1) * (counted(1, 2) - one) if some else whole


def _held(kind: Kind, patched: Any) -> float:
    """Bytes that a MODEL of all blocks holds, in half precision, from one of one block of each
    kind: keys and values, or the modules that make them."""
    geometry = kind.geometry
    if geometry.kind == "SD3":
        state = kind.file(geometry, kind.features[-1], kind.tokens, SHAPES_ONLY, **kind.size)
        return HALF * sum(tensor.numel() for tensor in state.values())
    options = patched.model_options["transformer_options"]
    placed = options[CARRIER].placed.values()
    held = [one.layer.nbytes() for patch in placed for one in patch.injections]
    blocks = geometry.double if kind.file is xlabs else geometry.blocks
    return blocks * sum(held) / len(held) / 4 * HALF  # on a CPU they are in single precision
