"""An adapter: its projector and one key and value projection per cross-attention layer, read as
they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import compress, repeat

import torch
from torch import Tensor
from torch.nn import functional

from .checkpoint import Checkpoint
from .folding import KeyValue
from .layers import Source
from .projection import build_projector, require_finite
from .prompt import ImagePrompt
from .recent import Recent, digest
from .spec import AdapterSpec, identify

ITEMS_AT_ONCE = 64  # per-latent prompts that are on the compute device together
_KEPT = 128 << 20  # bytes of tokens, keys and values kept per adapter


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter. Holds no layer weights: those stay in the file until a prompt is projected
    through them."""

    spec: AdapterSpec
    checkpoint: Checkpoint
    recent: Recent = field(default_factory=lambda: Recent(_KEPT), kw_only=True)
    """Tokens, keys and values of recent prompts: another weight or range projects nothing anew."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Adapter:
        """Identify a checkpoint by keys and shapes. ValueError if it is no adapter."""
        spec = identify(
            checkpoint.image_proj.shapes(), checkpoint.ip_adapter.shapes(), checkpoint.name
        )
        return cls(spec, checkpoint)

    @property
    def name(self) -> str:
        """File name, for messages."""
        return self.checkpoint.name

    @cached_property
    def digest(self) -> str:
        """Tells this adapter from others of its kind: a hash of its projector's vectors."""
        shapes = self.checkpoint.image_proj.shapes()
        vectors = sorted(key for key, shape in shapes.items() if len(shape) == 1)
        return digest(*(self.checkpoint.image_proj[key] for key in vectors))

    @cached_property
    def projector(self) -> torch.nn.Module:
        """The image projector in fp32 on the CPU, built at first use."""
        return build_projector(self.spec, self.checkpoint.image_proj, self.name).float()

    @cached_property
    def layer_ids(self) -> tuple[int, ...]:
        """Ids of the adapter's layers in layer order: 1, 3, 5, ..."""
        return tuple(
            sorted(
                int(key.split(".")[0])
                for key in self.checkpoint.ip_adapter
                if key.endswith(".to_k_ip.weight")
            )
        )

    def key_values(
        self,
        prompt: ImagePrompt,
        device: torch.device | str = "cpu",
        wanted: Sequence[bool] | None = None,
    ) -> Iterator[Mapping[Source, KeyValue]]:
        """Project a prompt through each wanted layer in turn; one layer's weights are in memory at
        a time.

        wanted: per layer, whether to project it; all by default. Yields, per layer, unscaled fp32
        keys and values of every kind of token the prompt has, on the CPU.
        """
        tokens = {Source.IMAGE: prompt.cond, Source.NEGATIVE: prompt.uncond}
        if prompt.second is not None:
            tokens[Source.SECOND_IMAGE] = prompt.second
        content = digest(*tokens.values())
        for layer in compress(self.layer_ids, wanted or repeat(True)):
            make = partial(self._project_layer, layer, tuple(tokens.values()), device)
            flat = self.recent.get((content, layer, str(device)), make)
            pairs = (KeyValue(*pair) for pair in zip(flat[::2], flat[1::2], strict=True))
            yield dict(zip(tokens, pairs, strict=True))

    def _project_layer(
        self, layer: int, tokens: Sequence[Tensor], device: torch.device | str
    ) -> list[Tensor]:
        """Key and value of each kind of token in turn."""
        keys = [f"{layer}.{part}.weight" for part in ("to_k_ip", "to_v_ip")]
        stored = self.checkpoint.ip_adapter
        weights = {key: stored[key].to(device, torch.float32) for key in keys}
        require_finite(weights, self.name)
        return [_project(t, weight) for t in tokens for weight in weights.values()]

    def __deepcopy__(self, memo: dict) -> Adapter:
        """Immutable: hosts that deep-copy what a graph carries get the same object."""
        return self


def _project(tokens: Tensor, weight: Tensor) -> Tensor:
    """(items, tokens, dim) to (items, tokens, width), in parts on the weight's device, gathered on
    the CPU: the device's share does not grow with the number of frames."""
    parts = [
        functional.linear(part.to(weight.device, torch.float32), weight).cpu()
        for part in tokens.split(ITEMS_AT_ONCE)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
