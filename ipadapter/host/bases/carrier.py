"""Image prompts in transformers: they go with the MODEL's options, and each model call puts them
around its blocks, over whoever holds the blocks' slots by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...attention.injection import Injection, Recorder
from ...attention.rows import CALL_KEY, CallState
from ...attention.transformer_patch import BlockPatch
from ...bases.layout import Layer, Layout
from ..sampling import ACTED, CARRIED
from .flux import FLUX_KIND
from .sd3 import SD3_KIND
from .transformer import Args, Around, Block, Frame, Kind

_KINDS = (FLUX_KIND, SD3_KIND)
_KIND_OF = {name: kind for kind in _KINDS for name in kind.slots}  # by the names of blocks

Holder = Callable[[Args, Mapping[str, Any]], dict[str, Any]]  # what a slot may hold


def read_transformer(network: Any) -> Layout | None:
    """The layout of a transformer in which adapters act; None for any other network."""
    layouts = (kind.read(network) for kind in _KINDS)
    return next((layout for layout in layouts if layout is not None), None)


@dataclass(frozen=True, eq=False)
class Carrier:
    """The image prompts of a MODEL, layer by layer."""

    placed: Mapping[Layer, BlockPatch] = field(default_factory=dict)

    def with_injections(self, injections: Mapping[Layer, Injection]) -> Carrier:
        """A new carrier that carries these as well."""
        added = {
            layer: self.placed.get(layer, BlockPatch()).with_injection(injection)
            for layer, injection in injections.items()
        }
        return Carrier({**self.placed, **added})

    def with_recorder(self, recorder: Recorder) -> Carrier:
        """A new carrier that shows its terms to `recorder`."""
        shown = {layer: replace(one, recorder=recorder) for layer, one in self.placed.items()}
        return Carrier(shown)

    def carried(self, options: Mapping[str, Any], latents: Tensor, network: Any) -> dict[str, Any]:
        """Options of one model call, with the terms around their blocks. latents: that the network
        is given."""
        call: CallState = options[CALL_KEY]
        acting = {
            layer: patch
            for layer, patch in self.placed.items()
            if any(injection.acts(call) for injection in patch.injections)
        }
        if not acting:
            return dict(options)
        call.prepared[CARRIED] = True
        kind = _KIND_OF[next(iter(acting)).block.name]
        frame = _frame(kind, latents, network)
        replaced = options.get("patches_replace", {})
        held: dict[Any, Any] = dict(replaced.get("dit", {}))
        for layer, patch in acting.items():
            key = (kind.slots[layer.block.name], layer.block.number)
            held[key] = _over(held.get(key), Around(layer, patch, frame, call), kind)
        for key in {
            kind.told_by[one.block.name] for one in acting if one.block.name in kind.told_by
        }:
            held[key] = _noting_text(held.get(key), frame)
        return {**options, "patches_replace": {**replaced, "dit": held}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Carrier:
        """Older hosts deep-copy model options on every clone; immutable content needs no copy."""
        return self


def _frame(kind: Kind, latents: Tensor, network: Any) -> Frame:
    side = kind.patch_size(network)
    height, width = (-(-size // side) for size in latents.shape[-2:])
    return Frame(network, (height, width), tuple(latents.shape))


def _over(holder: Holder | None, around: Around, kind: Kind) -> Holder:
    """What goes into a block's slot: the block with its terms, inside whatever held the slot."""

    @torch.compiler.disable(recursive=False)
    def run(args: Args, extra: Mapping[str, Any]) -> dict[str, Any]:
        original: Block = extra["original_block"]
        around.call.prepared[ACTED] = True

        def block(given: Args) -> dict[str, Any]:
            return kind.carry(around, original, given)

        if holder is None:
            return block(args)
        return holder(args, {**extra, "original_block": block})

    return run


def _noting_text(holder: Holder | None, frame: Frame) -> Holder:
    """What goes into a slot whose block tells how many rows are text."""

    def run(args: Args, extra: Mapping[str, Any]) -> dict[str, Any]:
        frame.text = int(args["txt"].shape[1])
        return extra["original_block"](args) if holder is None else holder(args, extra)

    return run
