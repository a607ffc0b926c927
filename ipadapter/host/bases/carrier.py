"""Image prompts in transformers: they go with the MODEL's options, and each model call puts them
around its blocks, over whoever holds the blocks' slots by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...attention.injection import Injection, Place, Recorder
from ...attention.rows import CALL_KEY, CallState
from ...attention.terms import Foreseen
from ...attention.transformer_patch import BlockPatch
from ...bases.layout import Layer, Layout
from ..sampling import ACTED, CARRIED
from .cosmos import COSMOS_KIND
from .flux import FLUX_KIND
from .sd3 import SD3_KIND
from .transformer import Args, Around, Block, Frame, Kind, Options, warn_unseen

_KINDS = (FLUX_KIND, SD3_KIND, COSMOS_KIND)
_KIND_OF = {name: kind for kind in _KINDS for name in kind.slots}  # by the names of blocks

Holder = Callable[[Args, Mapping[str, Any]], dict[str, Any]]  # what a slot may hold


def kind_of(network: Any) -> Kind | None:
    """What kind of transformer a network is; None for any other network."""
    return next((kind for kind in _KINDS if kind.read(network) is not None), None)


def read_transformer(network: Any) -> Layout | None:
    """The layout of a transformer in which adapters act; None for any other network."""
    kind = kind_of(network)
    return None if kind is None else kind.read(network)


class Carried(NamedTuple):
    """Options of a model call that carry image prompts, and what its blocks make known. acts:
    whether any of them acts at the call's noise level."""

    options: dict[str, Any]
    frame: Frame
    acts: bool

    def report(self, prepared: MutableMapping[Any, Any]) -> None:
        """After the call: note for the sampling run what was seen. Blocks do not: compiled ones
        leave the run's own state alone."""
        if self.acts:
            prepared[CARRIED] = True
        if self.frame.acted:
            prepared[ACTED] = True
        if self.frame.unseen is not None:
            warn_unseen(self.frame.unseen, prepared)


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

    def carried(
        self, options: Mapping[str, Any], network: Any, latents: Tensor, dtype: torch.dtype
    ) -> Carried | None:
        """Options of one model call, with the terms around their blocks; None if there are none.
        latents: that the network is given. dtype: that it computes in."""
        call: CallState = options[CALL_KEY]
        placed = {
            layer: patch
            for layer, patch in self.placed.items()
            if any(one.place is not Place.JOINED or one.acts(call) for one in patch.injections)
        }
        if not placed:
            return None
        kind = _KIND_OF[next(iter(placed)).block.name]
        frame = frame_of(kind, network, latents, call)
        foreseen = Foreseen(latents.shape[0], latents.device, dtype, [frame.grid])
        blocks = [
            Around(layer, patch.ready(call, foreseen, kind.norms(network, layer)), frame)
            for layer, patch in placed.items()
        ]
        acts = any(one.acts(call) for patch in placed.values() for one in patch.injections)
        return Carried(around_blocks(kind, options, blocks, frame), frame, acts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Carrier:
        """Older hosts deep-copy model options on every clone; immutable content needs no copy."""
        return self


def around_blocks(
    kind: Kind, options: Options, blocks: Sequence[Around], frame: Frame
) -> dict[str, Any]:
    """Options of one model call, with terms around their blocks."""
    if kind.around is not None:
        return kind.around(options, blocks)
    replaced = options.get("patches_replace", {})
    held: dict[Any, Any] = dict(replaced.get("dit", {}))
    names = {around.layer.block.name for around in blocks}
    for around in blocks:
        block = around.layer.block
        key = (kind.slots[block.name], block.number)
        held[key] = _over(held.get(key), around, kind)
    for key in {kind.told_by[name] for name in names if name in kind.told_by}:
        held[key] = _noting_text(held.get(key), frame)
    return {**options, "patches_replace": {**replaced, "dit": held}}


def frame_of(kind: Kind, network: Any, latents: Tensor, call: CallState) -> Frame:
    """What the blocks of a model call on these latents have in common."""
    side = kind.patch_size(network)
    height, width = (-(-size // side) for size in latents.shape[-2:])
    return Frame((height, width), tuple(latents.shape), call.fresh)


def _over(holder: Holder | None, around: Around, kind: Kind) -> Holder:
    """What goes into a block's slot: the block with its terms, inside whatever held the slot."""

    def run(args: Args, extra: Mapping[str, Any]) -> dict[str, Any]:
        original: Block = extra["original_block"]
        around.frame.acted = True

        def block(given: Args) -> dict[str, Any]:
            if around.frame.twice:
                picture = given["img"][: len(given["img"]) // 2]
                given = {**given, "img": torch.cat([picture, picture])}
            return kind.carry(around, original, given) if around.ready.counts() else original(given)

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
