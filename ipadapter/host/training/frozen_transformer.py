"""A MODEL's transformer as an adapter trains on it: the terms and places are those of Apply, only
that keys and values have gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...adapters.wiring import Wiring
from ...attention.folding import KeyValue, LayerKeyValue
from ...attention.injection import Injection, Place
from ...attention.rows import CallState
from ...attention.terms import Foreseen
from ...attention.transformer_patch import BlockPatch, Sight
from ...bases.layout import Layer, Layout
from ...training.data import Batch
from ...training.study import Learn, Lesson
from ...training.trainable import LayerTensors
from ..bases.carrier import around_blocks, frame_of
from ..bases.transformer import OVERRIDE, Around, Kind, Learning
from .autograd import differentiable
from .schedule import sigmas_of


class _Tells(NamedTuple):
    """In the place of a block's terms, so that it shows what it attends with."""

    counts: bool = True


@dataclass(frozen=True, eq=False)
class _Listening:
    """In the place of a block's ready terms: adds nothing, and tells what the block makes of rows
    whose second half has the empty text."""

    place: Place
    told: Callable[[Lesson], None]

    @property
    def inside(self) -> tuple[_Tells, ...]:
        """Something, where terms are added in the attention."""
        return (_Tells(),) if self.place is Place.IN_ATTENTION else ()

    @property
    def after(self) -> tuple[_Tells, ...]:
        """Something, where they are added after the block."""
        return (_Tells(),) if self.place is Place.AFTER_BLOCK else ()

    def counts(self) -> bool:
        """Always to be run."""
        return True

    def added_inside(self, base: Tensor, query: Tensor, sight: Sight) -> Tensor:
        """`base` as it is. base, query: (rows, length, width)."""
        if self.inside:
            self._tell(base, query, sight)
        return base

    def added_after(self, base: Tensor, query: Tensor, sight: Sight) -> Tensor:
        """The same after the block."""
        self._tell(base, query, sight)
        return base

    def add_joined_(self, *_given: Any) -> None:
        """Nothing."""

    def _tell(self, base: Tensor, query: Tensor, sight: Sight) -> None:
        half = len(base) // 2
        self.told(Lesson(query[:half], base[:half], base[half:], sight.heads))


@dataclass(frozen=True, eq=False)
class FrozenTransformer:
    """A loaded transformer; `predict` is what a Trainer calls, `observe` what a Study calls."""

    patcher: ModelPatcher
    whole: Layout
    dtype: torch.dtype
    kind: Kind
    learning: Learning

    @property
    def layout(self) -> Layout:
        """The layers of a new adapter."""
        return self.whole.only(self.wiring.value.blocks)

    @property
    def wiring(self) -> Wiring:
        """How they are wired."""
        return self.learning.wiring

    @property
    def token_dim(self) -> int:
        """Width of the tokens of a new adapter."""
        return self.learning.token_dim(self._network)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.patcher.load_device

    @property
    def _network(self) -> Any:
        return self.patcher.model.diffusion_model

    def layers(self) -> list[LayerTensors]:
        """What the layers of a new adapter begin with."""
        return [self.learning.begin(self._network, layer) for layer in self.layout.layers]

    def predict(
        self, noisy: Tensor, times: Tensor, batch: Batch, key_values: Sequence[KeyValue]
    ) -> Tensor:
        """The transformer's raw prediction with the given image keys and values in every layer."""
        place = self.wiring.value.place
        layers = zip(self.layout.layers, key_values, strict=bool(key_values))
        placed = {
            layer: BlockPatch((Injection(LayerKeyValue(pair, pair), place=place),))
            for layer, pair in layers
        }
        return self._call(noisy, times, batch, placed)

    def observe(
        self, noisy: Tensor, times: Tensor, batch: Batch, empty: Tensor, learn: Learn
    ) -> None:
        """Call the transformer without an adapter and tell `learn` what every block draws from the
        text, and what it would draw from the empty one: (1, length, width).

        In joint blocks all rows are there twice, first with their text, then with the empty one;
        each block is given the picture's rows of the first half in both, so that only the text
        differs. Elsewhere the empty text is behind the text.
        """

        def telling(number: int) -> Callable[[Lesson], None]:
            return lambda lesson: learn(number, lesson)

        place = self.wiring.value.place
        placed = {
            layer: _Listening(place, telling(number))
            for number, layer in enumerate(self.layout.layers)
        }
        nothing = empty.to(batch.text).expand(len(noisy), -1, -1)
        if not self.learning.joint:
            batch = replace(batch, text=torch.cat([batch.text, nothing], dim=1))
            self._call(noisy, times, batch, placed, twice=True)
            return
        vectors = None if batch.vectors is None else torch.cat([batch.vectors] * 2)
        batch = replace(batch, text=torch.cat([batch.text, nothing]), vectors=vectors)
        self._call(torch.cat([noisy] * 2), torch.cat([times] * 2), batch, placed, twice=True)

    def _call(
        self,
        noisy: Tensor,
        times: Tensor,
        batch: Batch,
        placed: Mapping[Layer, BlockPatch | _Listening],
        twice: bool = False,
    ) -> Tensor:
        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = sigmas_of(sampling, times)
        call = CallState((True,), tuple(range(len(noisy))), len(noisy), sigmas)
        options = {
            **self.patcher.model_options.get("transformer_options", {}),
            OVERRIDE: differentiable,
            "cond_or_uncond": [0],
            "sigmas": sigmas,
        }
        frame = frame_of(self.kind, self._network, noisy, call)
        frame.twice = twice
        foreseen = Foreseen(len(noisy), noisy.device, self.dtype, [frame.grid])
        blocks = [
            Around(layer, _ready(patch, call, foreseen), frame) for layer, patch in placed.items()
        ]
        options = around_blocks(self.kind, options, blocks, frame)
        return self._network(
            noisy.to(self.dtype),
            sampling.timestep(sigmas).float(),
            context=batch.text.to(self.dtype),
            transformer_options=options,
            **self._extra(batch, noisy),
        )

    def _extra(self, batch: Batch, noisy: Tensor) -> dict[str, Tensor]:
        """What the network takes beside the text."""
        found = {
            name: value.expand(len(noisy), *value.shape[1:]) for name, value in batch.others.items()
        }
        if batch.vectors is not None:
            found["y"] = batch.vectors
        return {name: value.to(noisy.device, self.dtype) for name, value in found.items()}


def _ready(patch: BlockPatch | _Listening, call: CallState, foreseen: Foreseen) -> Any:
    return patch if isinstance(patch, _Listening) else patch.ready(call, foreseen)
