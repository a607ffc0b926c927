"""An adapter: its projector and one key and value projection per cross-attention layer, read as
they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from .streamed import pieces

TOKENS_AT_ONCE = 1024  # of per-latent prompts, together on the compute device
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
        """The image projector, which computes in fp32 on the CPU; built at first use. Its matrices
        stay in the file."""
        projector = build_projector(self.spec, self.checkpoint.image_proj, self.name)
        for parameter in projector.parameters():
            if parameter.ndim != 2:  # biases, norms, latents
                parameter.data = parameter.data.float()
        return projector

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
        rows = torch.cat([kind.cpu().float().flatten(0, 1) for kind in tokens.values()])
        for layer in compress(self.layer_ids, wanted or repeat(True)):
            make = partial(self._project_layer, layer, rows, device)
            key, value = self.recent.get((content, layer, str(device)), make)
            yield dict(zip(tokens, _by_kind(key, value, tokens.values()), strict=True))

    def _project_layer(
        self, layer: int, rows: Tensor, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, (tokens, width) each."""
        names = [f"{layer}.{part}.weight" for part in ("to_k_ip", "to_v_ip")]
        weights = {name: self.checkpoint.ip_adapter[name] for name in names}
        key, value = (_project(rows, weight, device) for weight in weights.values())
        if not torch.isfinite(key.sum() + value.sum()):  # where damaged weights show, if any are
            require_finite(weights, self.name)
        return key, value

    def __deepcopy__(self, memo: dict) -> Adapter:
        """Immutable: hosts that deep-copy what a graph carries get the same object."""
        return self


def _project(rows: Tensor, weight: Tensor, device: torch.device | str) -> Tensor:
    """(rows, dim) to (rows, width), in parts on the device, gathered on the CPU: the device's share
    does not grow with the number of frames."""
    out = torch.empty(rows.shape[0], weight.shape[0])
    for part, piece in pieces(weight, device):
        for begin in range(0, rows.shape[0], TOKENS_AT_ONCE):
            some = slice(begin, begin + TOKENS_AT_ONCE)
            out[some, part] = functional.linear(rows[some].to(device), piece).cpu()
    return out


def _by_kind(key: Tensor, value: Tensor, tokens: Iterable[Tensor]) -> Iterator[KeyValue]:
    """Keys and values of each kind of tokens: (items, tokens, width), views."""
    begin = 0
    for kind in tokens:
        end = begin + kind.shape[0] * kind.shape[1]
        yield KeyValue(*(part[begin:end].unflatten(0, kind.shape[:2]) for part in (key, value)))
        begin = end
