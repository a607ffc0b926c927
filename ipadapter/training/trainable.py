"""An adapter that can learn: the projector and one key and value projection per layer.

Its state dict is the standard file layout: `image_proj.*`, `ip_adapter.{1,3,5...}.to_k_ip.weight`
and `.to_v_ip.weight`, and for transformers, from 0 on, what else their layers hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter, build_projector
from ..adapters.families import TRAINABLE, Family, Training
from ..adapters.projectors import Resampler
from ..adapters.vision import EmbedSource
from ..adapters.wiring import KEY, KEY_BIAS, KEY_NORM, VALUE, VALUE_BIAS, Wiring, normed_key
from ..attention.folding import KeyValue
from ..errors import Problem
from ..files.tensors import Shapes

Weights = tuple[Tensor, Tensor]  # of a key and a value projection, (width, token_dim) each
LayerTensors = Mapping[str, Tensor]  # what a layer holds, by the names of its wiring


def family_in(family: Family, wiring: Wiring, base: str) -> Family:
    """The family that is trained on a base, for the one that the user has chosen. ValueError where
    its adapters have no such projector."""
    found = family.wired(wiring)
    if found is None:
        fitting = [one.value for one in TRAINABLE if one.wired(wiring)]
        raise Problem.UNSUPPORTED(
            f"There are no {family.value} adapters for {base}: choose {' or '.join(fitting)}."
        )
    return found


def training_of(family: Family) -> Training:
    """How a family begins; ValueError for families that need more than pictures to train."""
    if family.row.training is None:
        names = ", ".join(known.value for known in TRAINABLE)
        raise Problem.UNSUPPORTED(
            f"Adapters of the {family.value} family cannot be trained: choose {names}."
        )
    return family.row.training


@dataclass(frozen=True)
class ProjectorPlan:
    """The projector of a new adapter.

    embed_dim: width that the image encoder delivers; token_dim: width of the tokens that the layers
    take, in a UNet that of the text context.
    Zeros stand for the official values: 4 tokens (Plus: 16), and a resampler as wide as the text
    context, 1280 at most.
    """

    family: Family
    embed_dim: int
    token_dim: int
    num_tokens: int = 0
    resampler_dim: int = 0
    resampler_depth: int = 4

    def __post_init__(self) -> None:
        """Refuse families that cannot be trained here."""
        training_of(self.family)

    @property
    def tokens(self) -> int:
        """Image tokens per picture."""
        return self.num_tokens or training_of(self.family).tokens

    @property
    def shapes(self) -> Shapes:
        """The shapes that the projector's builder reads its dimensions from."""
        return training_of(self.family).shapes(
            self.tokens, self.embed_dim, self.token_dim, self.resampler_dim, self.resampler_depth
        )


def new_projector(plan: ProjectorPlan, generator: torch.Generator) -> nn.Module:
    """A projector with the reference's initial weights, drawn from `generator`."""
    with torch.device("meta"):
        projector = plan.family.row.projector(plan.shapes)
    projector.to_empty(device=generator.device)
    with torch.no_grad():
        for module in projector.modules():
            _initialise(module, generator)
    return projector


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """torch's own defaults for linear and norm layers, unit-length latents for a resampler."""
    if isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - torch says so
            module.bias.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, nn.LayerNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()
    elif isinstance(module, Resampler):
        width = module.latents.shape[-1]
        module.latents.normal_(generator=generator).mul_(width**-0.5)


class ImageKeyValue(nn.Module):
    """K' and V' of one layer."""

    def __init__(self, held: LayerTensors) -> None:
        """held: what the layer begins with; copied."""
        super().__init__()
        self.to_k_ip = _linear(held[KEY], held.get(KEY_BIAS))
        self.to_v_ip = _linear(held[VALUE], held.get(VALUE_BIAS))
        if KEY_NORM in held:
            self.norm_ip_k = nn.ParameterDict({"weight": _parameter(held[KEY_NORM])})

    def forward(self, tokens: Tensor) -> KeyValue:
        """(images, tokens, token_dim) -> keys and values, (images, tokens, width) each"""
        norm: Any = getattr(self, "norm_ip_k", None)
        key = normed_key(self.to_k_ip(tokens), None if norm is None else norm["weight"])
        return KeyValue(key, self.to_v_ip(tokens))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to(torch.float32, copy=True))


class TrainableAdapter(nn.Module):
    """A projector and K', V' of every layer, in fp32."""

    def __init__(
        self, projector: nn.Module, layers: Mapping[int, LayerTensors], family: Family
    ) -> None:
        """layers: what each begins with, by the id of the adapter's layer."""
        super().__init__()
        self.family = family
        self.image_proj = projector.float().requires_grad_(True).train(True)
        self.ip_adapter = nn.ModuleDict(
            {str(number): ImageKeyValue(layer) for number, layer in layers.items()}
        )

    @classmethod
    def create(
        cls, plan: ProjectorPlan, text: Sequence[Weights], generator: torch.Generator
    ) -> TrainableAdapter:
        """A new adapter whose K' and V' begin as the UNet's own text projections.

        text: weights of every attn2's to_k and to_v, in adapter order.
        """
        return cls.begun(plan, [{KEY: key, VALUE: value} for key, value in text], generator)

    @classmethod
    def begun(
        cls, plan: ProjectorPlan, layers: Sequence[LayerTensors], generator: torch.Generator
    ) -> TrainableAdapter:
        """A new adapter. layers: what each begins with, in adapter order."""
        wires = plan.family.row.wiring.value
        numbered = {wires.first + wires.step * n: layer for n, layer in enumerate(layers)}
        return cls(new_projector(plan, generator), numbered, plan.family)

    @classmethod
    def from_adapter(cls, adapter: Adapter) -> TrainableAdapter:
        """Go on with an existing adapter; its weights are copied."""
        spec, checkpoint = adapter.spec, adapter.checkpoint
        if spec.family.row.training is None or spec.has_lora:
            raise Problem.UNSUPPORTED(
                f"{adapter.name} is of the {spec.family.value} family, whose training cannot be "
                "resumed here: connect a standard or Plus adapter."
            )
        copies = {key: checkpoint.image_proj[key].float().clone() for key in checkpoint.image_proj}
        held = spec.family.row.wiring.value.holds
        weights = checkpoint.ip_adapter
        layers = {
            number: {name: weights[f"{number}.{name}"] for name in held}
            for number in adapter.layer_ids
        }
        return cls(build_projector(spec, copies, adapter.name), layers, spec.family)

    @property
    def embed_source(self) -> EmbedSource:
        """What the projector takes."""
        return self.family.row.reads

    def forward(self, features: Tensor) -> list[KeyValue]:
        """Features of one picture per sample, (samples, ...), to keys and values of every layer."""
        tokens = self.image_proj(features)
        return [layer(tokens) for layer in self.ip_adapter.children()]
