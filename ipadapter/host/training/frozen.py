"""A MODEL, loaded, as a base that an adapter trains on; which kind it is, its network tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...errors import Problem
from ..bases.carrier import kind_of
from ..bases.unet import read_layout
from ..devices import kept_dtype
from .autograd import norms_apart, trackable
from .checkpointing import recomputed
from .frozen_transformer import FrozenTransformer
from .frozen_unet import FrozenUNet
from .schedule import schedule_of

Frozen = FrozenUNet | FrozenTransformer


class Precision(str, Enum):
    """What the frozen base computes in while an adapter trains on it."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


@contextmanager
def frozen_base(
    model: ModelPatcher,
    precision: Precision,
    latent_shape: Sequence[int],
    checkpointing: bool = False,
) -> Iterator[Frozen]:
    """Load a MODEL, with room for gradients of (batch, channels, ..., height, width) latents.
    checkpointing: blocks are computed again for their gradients instead of kept.

    Inside, autograd works although the host runs nodes in inference mode.
    """
    schedule_of(model)
    patcher = model.clone()
    dtype = _dtype(patcher, precision)
    if dtype != kept_dtype(patcher):
        patcher.set_model_compute_dtype(dtype)
    base = _base(patcher, dtype)
    activations = 4 * patcher.memory_required(list(latent_shape))
    comfy.model_management.load_models_gpu([patcher], memory_required=activations)
    network = patcher.model.diffusion_model
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(trackable(network))
        if isinstance(base, FrozenTransformer):
            stack.enter_context(norms_apart(network))
        if checkpointing:
            stack.enter_context(recomputed(network))
        yield base


def _base(patcher: ModelPatcher, dtype: torch.dtype) -> Frozen:
    network = patcher.get_model_object("diffusion_model")
    kind = kind_of(network)
    if kind is None:
        sigmas = patcher.get_model_object("model_sampling").sigmas
        return FrozenUNet(patcher, read_layout(patcher), dtype, sigmas.detach().float().clone())
    layout = kind.read(network)
    if layout is None or not layout.layers:
        raise Problem.UNSUPPORTED(
            f"No adapter can be trained on this MODEL ({type(patcher.model).__name__}): it does "
            "not normalise its queries and keys. SD3.5 does."
        )
    return FrozenTransformer(patcher, layout, dtype, kind, kind.learning)


def _dtype(model: ModelPatcher, precision: Precision) -> torch.dtype:
    """fp16 gradients overflow without loss scaling, so `auto` replaces fp16 by bf16 or fp32."""
    if precision is not Precision.AUTO:
        return {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}[precision]
    dtype = kept_dtype(model)
    if dtype != torch.float16:
        return dtype
    bf16 = comfy.model_management.should_use_bf16(model.load_device)
    return torch.bfloat16 if bf16 else torch.float32
