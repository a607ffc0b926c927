"""Where keys and values are computed, and in which precision they are kept."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

_KEPT = (torch.float32, torch.float16, torch.bfloat16)


def compute_device() -> torch.device:
    """The device that projects prompts through an adapter's layers."""
    return comfy.model_management.get_torch_device()


def kept_device() -> torch.device:
    """Where folded keys and values wait between samplings."""
    return comfy.model_management.intermediate_device()


def kept_dtype(model: ModelPatcher) -> torch.dtype:
    """The precision that a MODEL computes in: its manual cast, else its own; half
    where that is quantised."""
    # Asked of the MODEL: another branch's compute dtype may be in the shared network just now.
    dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()
    return dtype if dtype in _KEPT else torch.float16
