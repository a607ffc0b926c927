"""A loaded layer's weight as it acts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def effective(linear: Any) -> Tensor:
    """A linear layer's weight, (width, inputs), as it acts: dequantised, LoRAs applied."""
    weight = linear.weight
    dtype = torch.float32 if getattr(linear, "comfy_cast_weights", False) else weight.dtype
    unit = torch.eye(linear.in_features, dtype=dtype, device=weight.device)
    with torch.no_grad():
        made = linear(unit)
        if linear.bias is not None:
            made = made - linear(torch.zeros_like(unit[:1]))
        return made.T.float().contiguous()
