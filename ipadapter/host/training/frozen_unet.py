"""A MODEL's UNet as something that gradients pass through and that does not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...attention.attn2_patch import Replacement
from ...attention.decoupled import image_attention
from ...attention.folding import KeyValue
from ...attention.rows import Extra
from ...bases.layout import BlockId, Layout
from ...errors import Problem
from ...training.data import Batch
from ...training.recipe import NoiseSchedule
from ...training.study import Learn, Lesson
from ...training.trainable import Weights
from ...training.weighting import Prediction
from ..bases.unet import read_layout
from ..devices import kept_dtype
from ..slots import text_attention
from .checkpointing import recomputed


class Precision(str, Enum):
    """What the frozen UNet computes in while an adapter trains on it."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


@dataclass(frozen=True, eq=False)
class FrozenUNet:
    """A loaded UNet; `predict` is what a Trainer calls."""

    patcher: ModelPatcher
    layout: Layout
    dtype: torch.dtype
    sigmas: Tensor

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.patcher.load_device

    def predict(
        self, noisy: Tensor, timesteps: Tensor, batch: Batch, key_values: Sequence[KeyValue]
    ) -> Tensor:
        """The UNet's raw prediction with the given image keys and values added in every layer."""
        added = [_adding(key_value) for key_value in key_values]
        return self._call(noisy, timesteps, batch, batch.text, added)

    def observe(
        self, noisy: Tensor, timesteps: Tensor, batch: Batch, empty: Tensor, learn: Learn
    ) -> None:
        """Call the UNet without an adapter and tell `learn` what every layer draws from the text,
        and what it would draw from the empty one: (1, length, width)."""
        length = batch.text.shape[1]
        # Behind the text, so that the layer's own projections, LoRAs included, read both.
        both = torch.cat((batch.text, empty.to(batch.text).expand(len(batch.text), -1, -1)), 1)
        slots = [_observing(number, length, learn) for number in range(len(self.layout.layers))]
        self._call(noisy, timesteps, batch, both, slots)

    def _call(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        batch: Batch,
        context: Tensor,
        slots: Sequence[Callable[[Replacement], Replacement]],
    ) -> Tensor:
        options = self._options(slots)
        options["sigmas"] = self.sigmas.to(noisy.device)[timesteps]
        vectors = {} if batch.vectors is None else {"y": batch.vectors.to(self.dtype)}
        return self.patcher.model.diffusion_model(
            noisy.to(self.dtype),
            timesteps.float(),
            context=context.to(self.dtype),
            transformer_options=options,
            **vectors,
        )

    def _options(self, chained: Sequence[Callable[[Replacement], Replacement]]) -> dict[str, Any]:
        """The MODEL's own options with one slot per layer chained over what was there."""
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        replaced = options.get("patches_replace", {})
        slots = dict(replaced.get("attn2", {}))
        for layer, slot in zip(self.layout.layers, chained, strict=bool(chained)):
            block = tuple(layer.block)
            previous = slots.get(block, slots.get(block[:2], text_attention))
            slots[block] = slot(previous)
        options["patches_replace"] = {**replaced, "attn2": slots}
        options["optimized_attention_override"] = _differentiable
        options["cond_or_uncond"] = [0]
        return options

    def text_weights(self) -> list[Weights]:
        """fp32 copies of every attn2's to_k and to_v, in adapter order, LoRAs included."""
        unet = self.patcher.model.diffusion_model
        attentions = [_attn2(unet, layer.block) for layer in self.layout.layers]
        return [(_effective(attn2.to_k), _effective(attn2.to_v)) for attn2 in attentions]


def _adding(key_value: KeyValue) -> Callable[[Replacement], Replacement]:
    """The image attention over whoever holds the slot."""

    def over(previous: Replacement) -> Replacement:
        def patch(query: Tensor, key: Tensor, value: Tensor, extra: Extra) -> Tensor:
            base = previous(query, key, value, extra)
            ip_key, ip_value = key_value.key.to(query.dtype), key_value.value.to(query.dtype)
            return base + image_attention(query, ip_key, ip_value, int(extra["n_heads"]))

        return patch

    return over


def _observing(number: int, length: int, learn: Learn) -> Callable[[Replacement], Replacement]:
    """The slot's own attention over the text, the first `length` tokens, seen by `learn`."""

    def over(previous: Replacement) -> Replacement:
        def patch(query: Tensor, key: Tensor, value: Tensor, extra: Extra) -> Tensor:
            text = previous(query, key[:, :length], value[:, :length], extra)
            nothing = previous(query, key[:, length:], value[:, length:], extra)
            learn(number, Lesson(query, text, nothing, int(extra["n_heads"])))
            return text

        return patch

    return over


def _differentiable(_attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Quantised and chunked attention kernels have no gradients; torch's own has."""
    return attention_pytorch(*args, **kwargs)


def _attn2(unet: Any, block: BlockId) -> Any:
    part = (
        unet.middle_block
        if block.name == "middle"
        else getattr(unet, f"{block.name}_blocks")[block.number]
    )
    found = next(module for module in part.modules() if isinstance(module, SpatialTransformer))
    return found.transformer_blocks[block.index].attn2


def _effective(linear: Any) -> Tensor:
    """A linear layer's weight, (width, context), as it acts: dequantised, LoRAs applied."""
    weight = linear.weight
    dtype = torch.float32 if getattr(linear, "comfy_cast_weights", False) else weight.dtype
    unit = torch.eye(linear.in_features, dtype=dtype, device=weight.device)
    with torch.no_grad():
        return linear(unit).T.float().contiguous()


def schedule_of(model: ModelPatcher) -> NoiseSchedule:
    """Noise levels of a MODEL's timesteps. ValueError for models that do not predict noise or v."""
    sampling = model.get_model_object("model_sampling")
    kinds: Mapping[type, Prediction] = {
        comfy.model_sampling.V_PREDICTION: Prediction.V,
        comfy.model_sampling.EPS: Prediction.EPS,
    }
    foreign = (comfy.model_sampling.EDM, comfy.model_sampling.X0)
    found = next((p for kind, p in kinds.items() if isinstance(sampling, kind)), None)
    sigmas = getattr(sampling, "sigmas", None)
    if found is None or isinstance(sampling, foreign) or sigmas is None:
        names = ", ".join(base.__name__ for base in type(sampling).__mro__[1:3])
        raise Problem.UNSUPPORTED(
            f"This MODEL's sampling ({names}) cannot be trained on: expected a model that predicts "
            "noise or velocity at 1000 discrete timesteps (SD1.5, SD2, SDXL)."
        )
    if getattr(model.model, "concat_keys", ()):
        raise Problem.UNSUPPORTED(
            f"This MODEL ({type(model.model).__name__}) is an inpainting or editing model, which "
            "takes a second picture. Train on the plain checkpoint of the same base; the adapter "
            "works on both."
        )
    return NoiseSchedule(sigmas.detach().float().cpu().clone(), found)


@contextmanager
def frozen_unet(
    model: ModelPatcher,
    precision: Precision,
    latent_shape: Sequence[int],
    checkpointing: bool = False,
) -> Iterator[FrozenUNet]:
    """Load a MODEL, with room for gradients of (batch, channels, height, width) latents.
    checkpointing: blocks are computed again for their gradients instead of kept.

    Inside, autograd works although the host runs nodes in inference mode.
    """
    layout, schedule = read_layout(model), schedule_of(model)
    patcher = model.clone()
    dtype = _dtype(patcher, precision)
    if dtype != kept_dtype(patcher):
        patcher.set_model_compute_dtype(dtype)
    activations = 4 * patcher.memory_required(list(latent_shape))
    comfy.model_management.load_models_gpu([patcher], memory_required=activations)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _trackable(patcher.model.diffusion_model),
        recomputed(patcher.model.diffusion_model if checkpointing else nn.Identity()),
    ):
        yield FrozenUNet(patcher, layout, dtype, schedule.sigmas)


def _dtype(model: ModelPatcher, precision: Precision) -> torch.dtype:
    """fp16 gradients overflow without loss scaling, so `auto` replaces fp16 by bf16 or fp32."""
    if precision is not Precision.AUTO:
        return {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}[precision]
    dtype = kept_dtype(model)
    if dtype != torch.float16:
        return dtype
    bf16 = comfy.model_management.should_use_bf16(model.load_device)
    return torch.bfloat16 if bf16 else torch.float32


@contextmanager
def _trackable(unet: nn.Module) -> Iterator[None]:
    """For a while, parameters are plain frozen tensors over the same memory.

    Autograd refuses tensors that were made in inference mode, as a loaded checkpoint's are.
    """
    kept: list[tuple[Any, str, Tensor]] = []
    for module in unet.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                plain = type(tensor) in (Tensor, nn.Parameter)
                if tensor is not None and plain and (tensor.is_inference() or tensor.requires_grad):
                    kept.append((table, name, tensor))
    try:
        for table, name, tensor in kept:
            alias = _alias(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            table[name] = nn.Parameter(alias, requires_grad=False) if is_parameter else alias
        yield
    finally:
        for table, name, tensor in kept:
            table[name] = tensor


def _alias(tensor: Tensor) -> Tensor:
    """A tensor that autograd accepts, over the same memory."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    storage = tensor.untyped_storage()
    return alias.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
