"""What an Apply node asks for: its inputs by their own names, and their translation into the core's
terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from torch import Tensor

from ..adapters.families import FaceVersion
from ..attention.folding import EmbedsScaling
from ..attention.weight_texts import parse_layer_weights
from ..attention.weight_types import WeightType
from ..bases.layout import UNetLayout
from ..errors import Problem
from ..pictures.faces import MissingFace
from .weighting import Plan
from .wire import Pipeline, pipeline_of

_Choice = TypeVar("_Choice", bound=Enum)
_NUMBERS = (
    "weight_composition",
    "weight_faceidv2",
    "weight_kolors",
    "style_boost",
    "composition_boost",
    "enhance_ratio",
)
_PRECISE = (WeightType.STYLE_PRECISE, WeightType.COMPOSITION_PRECISE)


def chosen(kind: type[_Choice], value: str, name: str) -> _Choice:
    """A widget string as its enum. Older hosts do not check the strings that a client sends, so
    this does."""
    try:
        return kind(value)
    except ValueError:
        options = ", ".join(repr(member.value) for member in kind)
        raise Problem.BAD_VALUE(f"{name} is {value!r}: expected one of {options}.") from None


def check_finite(value: float | None, name: str) -> None:
    """Refuse NaN and infinity, which a client may send and no host refuses."""
    if value is not None and not math.isfinite(value):
        raise Problem.BAD_VALUE(f"{name} is {value}: expected a finite number.")


@dataclass(frozen=True, eq=False)
class Request:
    """Inputs of every Apply node; each node has some of them. Names are those of the sockets and
    widgets.

    weight may be one number or one per latent. per_item: picture i belongs to latent i (the batch
    nodes).
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
    weight_faceidv2: float | None = None
    weight_kolors: float = 1.0
    weight_type: str = WeightType.LINEAR.value
    combine_embeds: str = "concat"
    start_at: float = 0.0
    end_at: float = 1.0
    embeds_scaling: str = EmbedsScaling.V_ONLY.value
    layer_weights: str = ""
    style_boost: float | None = None
    composition_boost: float | None = None
    enhance_tiles: int = 1
    enhance_ratio: float = 1.0
    encode_batch_size: int = 0
    face_version: str = FaceVersion.AUTO.value
    missing_face: str = MissingFace.ERROR.value
    per_item: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that are no numbers; the main weight is checked where it is used."""
        for name in _NUMBERS:
            check_finite(getattr(self, name), name)

    @property
    def pipeline(self) -> Pipeline:
        """The adapter with its encoder and face analysis; what is connected here goes before the
        loader's."""
        pipeline = pipeline_of(self.ipadapter)
        version = chosen(FaceVersion, self.face_version, "face_version")
        adapter = pipeline.adapter
        if version is not FaceVersion.AUTO:
            adapter = replace(adapter, spec=adapter.spec.with_face_version(version))
        return replace(
            pipeline,
            adapter=adapter,
            clip_vision=self.clip_vision or pipeline.clip_vision,
            insightface=self.insightface or pipeline.insightface,
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of every latent, or one for all."""
        if isinstance(self.weight, (int, float)):
            return (float(self.weight),)
        return tuple(float(weight) for weight in self.weight)

    @property
    def face_scale(self) -> float:
        """How much of a face's picture joins its identity (FaceID Plus v2); unset: twice the
        weight."""
        return 2.0 * self.weights[0] if self.weight_faceidv2 is None else self.weight_faceidv2

    @property
    def kind(self) -> WeightType:
        """The weight type; a boost makes it precise, and layer weights replace all types but the
        precise ones."""
        kind = chosen(WeightType, self.weight_type, "weight_type")
        if self.style_boost is not None:
            kind = WeightType.STYLE_PRECISE
        if self.composition_boost is not None:
            kind = WeightType.COMPOSITION_PRECISE
        return WeightType.LINEAR if self.layer_weights.strip() and kind not in _PRECISE else kind

    def plan(self, layout: UNetLayout) -> Plan:
        """Strength, layer by layer."""
        boost = self.composition_boost if self.style_boost is None else self.style_boost
        text = self.layer_weights.strip()
        return Plan(
            self.weights,
            self.kind,
            chosen(EmbedsScaling, self.embeds_scaling, "embeds_scaling"),
            self.weight_composition,
            boost,
            parse_layer_weights(text, layout.transformers) if text else None,
        )
