"""What an Apply node asks for: its inputs by their own names, and their translation
into the core's terms."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from ..adapters.families import FaceVersion
from ..attention.folding import EmbedsScaling
from ..attention.weight_texts import number, numbers, parse_layer_weights, whole_number
from ..attention.weight_types import Weighting, WeightType
from ..bases.layout import Layout
from ..errors import Problem
from ..pictures.embeds import CombineMethod
from ..pictures.faces import MissingFace
from .old_values import todays, todays_scaling
from .wire import LoadedAdapter, loaded_adapter

_Choice = TypeVar("_Choice", bound=Enum)
_NUMBERS = (
    "weight_composition",
    "weight_kolors",
    "boost",
    "start_at",
    "end_at",
    "enhance_ratio",
)
_WHOLE = ("enhance_tiles", "encode_batch_size")


def chosen(kind: type[_Choice], value: str, name: str) -> _Choice:
    """A widget string as its enum; names of early 2024 count too.

    Older hosts do not check the strings that a client sends, so this does.
    """
    for said in (value, todays(value, name)):  # its own names first: nodes of 2023 have theirs
        with suppress(ValueError):
            return kind(said)
    options = ", ".join(repr(member.value) for member in kind)
    raise Problem.BAD_VALUE(f"{name} is {value!r}: expected one of {options}.")


@dataclass(frozen=True, eq=False)
class Reading:
    """How pictures are encoded: by what, how many at a time, what to do without a face, the
    enhancer's tiles and their share; per_item: whether picture i belongs to latent i."""

    loaded: LoadedAdapter
    batch_size: int = 0
    missing_face: str = MissingFace.ERROR.value
    enhance_tiles: int = 1
    enhance_ratio: float = 1.0
    per_item: bool = False


@dataclass(frozen=True, eq=False)
class Request:
    """Inputs of every Apply node; each node has some of them.

    Names are those of the sockets and widgets.

    weight and weight_faceidv2 may be one number or one per latent; numbers come in any of the forms
    that other nodes send. per_item: picture i belongs to latent i (the batch nodes).
    """

    model: Any
    ipadapter: Any
    image: Tensor | None = None
    image_composition: Tensor | None = None
    image_negative: Tensor | None = None
    attn_mask: Tensor | None = None
    image_mask: Tensor | None = None
    clip_vision: Any = None
    insightface: Any = None
    pos_embed: Any = None
    neg_embed: Any = None
    weight: float | Sequence[float] = 1.0
    weight_composition: float | None = None
    weight_faceidv2: float | Sequence[float] | None = None
    weight_kolors: float = 1.0
    weight_type: str = WeightType.LINEAR.value
    combine_embeds: str = CombineMethod.CONCAT.value
    start_at: float = 0.0
    end_at: float = 1.0
    embeds_scaling: str = EmbedsScaling.V_ONLY.value
    layer_weights: str = ""
    boost: float | None = None
    enhance_tiles: int = 1
    enhance_ratio: float = 1.0
    encode_batch_size: int = 0
    face_version: str = FaceVersion.AUTO.value
    missing_face: str = MissingFace.ERROR.value
    per_item: bool = False

    def __post_init__(self) -> None:
        """Make settings plain numbers; those that are one per latent when they are used."""
        for names, plain in ((_NUMBERS, number), (_WHOLE, whole_number)):
            for name in names:
                value = getattr(self, name)
                if value is not None:
                    object.__setattr__(self, name, plain(value, name))
        for scale in () if self.weight_faceidv2 is None else self.face_scales:
            number(scale, "weight_faceidv2")

    @cached_property
    def loaded(self) -> LoadedAdapter:
        """The adapter with its encoder and face analysis; what is connected here
        goes before the loader's."""
        loaded = loaded_adapter(self.ipadapter)
        version = chosen(FaceVersion, self.face_version, "face_version")
        adapter = loaded.adapter
        if version is not FaceVersion.AUTO:
            adapter = replace(adapter, spec=adapter.spec.with_face_version(version))
        return LoadedAdapter(
            adapter, self.clip_vision or loaded.clip_vision, self.insightface or loaded.insightface
        )

    @property
    def reading(self) -> Reading:
        """How to encode the pictures."""
        return Reading(
            self.loaded,
            self.encode_batch_size,
            self.missing_face,
            self.enhance_tiles,
            self.enhance_ratio,
            self.per_item,
        )

    @property
    def combine_method(self) -> CombineMethod:
        """How several pictures become one prompt."""
        return chosen(CombineMethod, self.combine_embeds, "combine_embeds")

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of every latent, or one for all."""
        return numbers(self.weight, "weight")

    @property
    def face_scales(self) -> tuple[float, ...]:
        """How much of a face's picture joins its identity (FaceID Plus v2), of every latent, or one
        for all; unset: twice the weight."""
        if self.weight_faceidv2 is None:
            return tuple(2.0 * weight for weight in self.weights)
        return numbers(self.weight_faceidv2, "weight_faceidv2")

    def weighting(self, layout: Layout) -> Weighting:
        """Strength, layer by layer."""
        text = self.layer_weights.strip()
        scaling = todays_scaling(self.weight_type, self.embeds_scaling)
        return Weighting(
            self.weights,
            chosen(WeightType, self.weight_type, "weight_type"),
            chosen(EmbedsScaling, scaling, "embeds_scaling"),
            self.weight_composition,
            self.boost,
            parse_layer_weights(text, layout.transformers) if text else None,
        )
