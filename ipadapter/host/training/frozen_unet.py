"""A MODEL's UNet as something that gradients pass through and that does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...adapters.wiring import KEY, VALUE, Wiring
from ...attention.attn2_patch import Replacement
from ...attention.decoupled import image_attention
from ...attention.folding import KeyValue
from ...attention.rows import Extra
from ...bases.layout import BlockId, Layout
from ...training.data import Batch
from ...training.study import Learn, Lesson
from ...training.trainable import LayerTensors, Weights
from ..linear import effective
from ..slots import text_attention
from .autograd import differentiable


@dataclass(frozen=True, eq=False)
class FrozenUNet:
    """A loaded UNet; `predict` is what a Trainer calls."""

    patcher: ModelPatcher
    layout: Layout
    dtype: torch.dtype
    sigmas: Tensor
    wiring = Wiring.UNET

    @property
    def token_dim(self) -> int:
        """Width of the tokens of a new adapter: that of the text context."""
        return self.layout.context_dim

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
        options["optimized_attention_override"] = differentiable
        options["cond_or_uncond"] = [0]
        return options

    def layers(self) -> list[LayerTensors]:
        """What the layers of a new adapter begin with: the text's own projections."""
        return [{KEY: key, VALUE: value} for key, value in self.text_weights()]

    def text_weights(self) -> list[Weights]:
        """fp32 copies of every attn2's to_k and to_v, in adapter order, LoRAs included."""
        unet = self.patcher.model.diffusion_model
        attentions = [_attn2(unet, layer.block) for layer in self.layout.layers]
        return [(effective(attn2.to_k), effective(attn2.to_v)) for attn2 in attentions]


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


def _attn2(unet: Any, block: BlockId) -> Any:
    part = (
        unet.middle_block
        if block.name == "middle"
        else getattr(unet, f"{block.name}_blocks")[block.number]
    )
    found = next(module for module in part.modules() if isinstance(module, SpatialTransformer))
    return found.transformer_blocks[block.index].attn2
