"""Widget values of 2023 and early 2024 that have another name today.

Shared workflow files, API prompts and other packs still send them, to any node, so every place
that reads a value translates it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..attention.folding import EmbedsScaling
from ..attention.weight_types import WeightType

# By input: old value -> today's.
OLD_VALUES: Mapping[str, Mapping[str, str]] = {
    "weight_type": {
        "original": WeightType.LINEAR.value,
        "channel penalty": WeightType.LINEAR.value,
        "style transfer (SDXL)": WeightType.STYLE.value,
        "style transfer (SDXL only)": WeightType.STYLE.value,
        "composition (SDXL)": WeightType.COMPOSITION.value,
        "composition (SDXL only)": WeightType.COMPOSITION.value,
    },
    "interpolation": {
        name.lower(): name
        for name in ("LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST")
    },
}
# In 2023 a weight type said what the weight scales; embeds_scaling says it today.
# Channel penalty is Fooocus' rule.
OLD_SCALINGS: Mapping[str, EmbedsScaling] = {
    "channel penalty": EmbedsScaling.K_AND_MEAN_V_PENALTY,
}


def todays(value: Any, name: str) -> Any:
    """What the value of an input is called today; values that are not old stay as they are."""
    return OLD_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value


def todays_scaling(weight_type: str, scaling: str) -> str:
    """The scaling that an old weight type stands for, unless another one than the
    default was chosen."""
    implied = OLD_SCALINGS.get(weight_type)
    return implied.value if implied and scaling == EmbedsScaling.V_ONLY.value else scaling
