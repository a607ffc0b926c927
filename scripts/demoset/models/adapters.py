"""Adapters of the standard and the Plus family for the demo base.

The widths that the base leaves at zero are zero in K' and V'.
"""

from pathlib import Path

from torch import Tensor

from . import narrow, packed

FILES = {"standard": "demoset-standard", "Plus": "demoset-plus"}
_GAP = "ip_adapter."


def widen(tensors: dict[str, Tensor], widths: narrow.Widths) -> dict[str, Tensor]:
    """An adapter for the 320 channels that the host loads."""
    return {
        key: narrow.widen_key_value(value, widths) if key.startswith(_GAP) else value
        for key, value in tensors.items()
    }


def write(family: str, models: Path, weights: Path = packed.WEIGHTS) -> Path:
    """Write an adapter into a ComfyUI models folder, in fp16 and the standard layout."""
    tensors, metadata = packed.load(weights / f"{FILES[family]}.safetensors")
    _, widths = narrow.load(weights / "unet.safetensors")
    path = models / "ipadapter" / f"{FILES[family]}.safetensors"
    return packed.write_half(widen(tensors, widths), path, metadata)
