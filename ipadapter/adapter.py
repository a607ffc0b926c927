"""An adapter: its projector and one key and value projection per cross-attention layer, read as
they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, repeat

import torch
from torch import Tensor
from torch.nn import functional

from .checkpoint import Checkpoint
from .folding import KeyValue
from .layers import Source
from .projection import build_projector
from .prompt import ImagePrompt
from .spec import AdapterSpec, identify

ITEMS_AT_ONCE = 64  # per-latent prompts that are on the compute device together


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter. Holds no layer weights: those stay in the file until a prompt is projected
    through them."""

    spec: AdapterSpec
    checkpoint: Checkpoint

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
    def projector(self) -> torch.nn.Module:
        """The image projector in fp32 on the CPU, built at first use."""
        return build_projector(self.spec, self.checkpoint.image_proj).float()

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
        keys and values of every kind of token the prompt has; of a prompt of many items they lie
        on the CPU, so that the device's share does not grow with the number of frames.
        """
        tokens = {Source.IMAGE: prompt.cond, Source.NEGATIVE: prompt.uncond}
        if prompt.second is not None:
            tokens[Source.SECOND_IMAGE] = prompt.second
        weights = self.checkpoint.ip_adapter
        for layer in compress(self.layer_ids, wanted or repeat(True)):
            to_k_ip = weights[f"{layer}.to_k_ip.weight"].to(device, torch.float32)
            to_v_ip = weights[f"{layer}.to_v_ip.weight"].to(device, torch.float32)
            yield {
                source: KeyValue(_project(t, to_k_ip), _project(t, to_v_ip))
                for source, t in tokens.items()
            }

    def __deepcopy__(self, memo: dict) -> Adapter:
        """Immutable: hosts that deep-copy what a graph carries get the same object."""
        return self


def _project(tokens: Tensor, weight: Tensor) -> Tensor:
    """(items, tokens, dim) to (items, tokens, width) on the weight's device; many items in parts,
    gathered on the CPU."""
    few = len(tokens) <= ITEMS_AT_ONCE
    where = weight.device if few else torch.device("cpu")
    parts = [
        functional.linear(part.to(weight.device, torch.float32), weight).to(where)
        for part in tokens.split(ITEMS_AT_ONCE)
    ]
    return parts[0] if few else torch.cat(parts)
