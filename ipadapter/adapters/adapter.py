"""An adapter: its projector and one key and value projection per cross-attention layer, read
as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import compress, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..attention.folding import KeyValue, LayerKeyValue, Source, fold
from ..attention.injection import LayerOverTime
from ..attention.weight_types import Weighting
from ..bases.layout import Layer, Layout
from ..errors import Problem
from .cache import TensorCache, digest
from .checkpoint import Checkpoint
from .key_values import by_kind, project_rows
from .projectors import (
    require_finite,
)
from .prompt import ImagePrompt
from .spec import AdapterSpec, identify
from .time_resampler import TimedAdapter
from .timed import over_time
from .wiring import KEY_NORM, normed_key

M = TypeVar("M", bound=nn.Module)
# Bytes of tokens, keys and values kept per adapter: 180 MB are what InstantX's makes of a picture.
_KEPT = 256 << 20
_LARGE_PROJECTOR = 1 << 28  # numbers; InstantX's has 1.2e9, all others less than 1e8


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter.

    Holds no layer weights: those stay in the file until a prompt is projected through them.
    """

    spec: AdapterSpec
    checkpoint: Checkpoint
    recent: TensorCache = field(default_factory=lambda: TensorCache(_KEPT), kw_only=True)
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

    @property
    def projector(self) -> torch.nn.Module:
        """The image projector. A large one is built for every use: what was read of its file would
        stay in memory with it."""
        shapes = self.checkpoint.image_proj.shapes().values()
        large = sum(map(math.prod, shapes)) >= _LARGE_PROJECTOR
        return self._built_projector() if large else self._kept_projector

    @cached_property
    def _kept_projector(self) -> torch.nn.Module:
        return self._built_projector()

    def _built_projector(self) -> torch.nn.Module:
        """The image projector, which computes in fp32 on the CPU. Its matrices
        stay in the file."""
        projector = build_projector(self.spec, self.checkpoint.image_proj, self.name)
        for parameter in projector.parameters():
            if parameter.ndim != 2:  # biases, norms, latents
                parameter.data = parameter.data.float()
        return projector

    @cached_property
    def timed(self) -> TimedAdapter:
        """Projector and layers of an adapter that depends on the noise level, in the file's dtype;
        built at first use."""
        parts = {"image_proj": self.checkpoint.image_proj, "ip_adapter": self.checkpoint.ip_adapter}
        tensors = {f"{half}.{key}": part[key] for half, part in parts.items() for key in part}
        shapes = [part.shapes() for part in parts.values()]
        return loaded_module(lambda: TimedAdapter(*shapes), tensors, f"{self.name}: its modules")

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
        """Project a prompt through each wanted layer in turn; one layer's weights are in
        memory at a time.

        wanted: per layer, whether to project it; all by default. Yields, per layer, unscaled fp32
        keys and values of every kind of token the prompt has, on the CPU.
        """
        tokens = {Source.IMAGE: prompt.cond}
        if prompt.uncond is not prompt.cond:
            tokens[Source.NEGATIVE] = prompt.uncond
        if prompt.second is not None:
            tokens[Source.SECOND_IMAGE] = prompt.second
        content = digest(*tokens.values())
        rows = torch.cat([kind.cpu().float().flatten(0, 1) for kind in tokens.values()])
        for layer in compress(self.layer_ids, wanted or repeat(True)):
            make = partial(self._project_layer, layer, rows, device)
            key, value = self.recent.get((content, layer, str(device)), make)
            yield dict(zip(tokens, by_kind(key, value, tokens.values()), strict=True))

    def _project_layer(
        self, layer: int, rows: Tensor, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, (tokens, width) each."""
        read = self.checkpoint.ip_adapter

        def projected(part: str) -> Tensor:
            weight, bias = read[f"{layer}.{part}.weight"], read.get(f"{layer}.{part}.bias")
            made = project_rows(rows, weight, device, bias)
            if not torch.isfinite(made.sum()):  # where damaged weights show, if any are
                require_finite({f"{layer}.{part}.weight": weight}, self.name)
            return made

        key = normed_key(projected("to_k_ip"), read.get(f"{layer}.{KEY_NORM}"))
        return key, projected("to_v_ip")

    def tokens(
        self,
        features: Tensor | None,
        face: Tensor | None = None,
        keep: Tensor | None = None,
        face_scales: Sequence[float] = (1.0,),
    ) -> Tensor:
        """The image tokens c: (images, tokens, projected_dim), fp32, on the CPU; of adapters that
        depend on the noise level the features, which become tokens while sampling.

        features: the encoder's output, (images, ...). face: (images, face_dim). keep: (images,
        patches) bool, the patches that a Resampler reads; None for all. face_scales: how much of a
        face's picture joins its identity, one or one per image, for the families that add the
        face's own tokens.
        """
        row = self.spec.family.row
        if row.wiring.value.by_time and features is not None:
            return features.float().cpu()
        # The default scale follows the weight: where it has no effect, a new weight projects
        # nothing.
        scales = tuple(face_scales) if row.adds_face else (1.0,)
        scale = torch.tensor(scales).view(-1, 1, 1)
        both = (scale, row.adds_face) if face is not None and features is not None else ()
        given = [t.float().cpu() for t in (face, features) if t is not None]
        given += [] if keep is None else [keep.cpu()]
        key = ("tokens", self.spec, scales, digest(*given))
        with torch.no_grad():
            (tokens,) = self.recent.get(key, lambda: [self.projector(*given, *both)])
        return tokens

    def layers_in(self, layout: Layout) -> Layout:
        """The layers of a base in which the adapter acts; ValueError if it is made for another."""
        spec = self.spec
        own = spec.layers_in(layout)
        if not spec.fits(layout):
            shown = own if own.layers else layout
            raise shown.misfit(spec.layer_widths, spec.token_dim, self.name, spec.base_name)
        return own

    def fold(
        self,
        layout: Layout,
        prompt: ImagePrompt,
        weighting: Weighting,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[tuple[Layer, LayerKeyValue | LayerOverTime]]:
        """K' and V' of every layer that acts, weights folded in; layers of weight 0 are left out.

        layout: the layers in which the adapter acts. device: where to project; dtype: in which the
        result is kept.
        """
        wires = self.spec.family.row.wiring.value
        rules = [prompt.rules(per_weight) for per_weight in weighting.rules(layout)]
        acting = [any(rule.weight for rule in per_weight) for per_weight in rules]
        if wires.by_time:
            weights = [tuple(rule.weight for rule in per_weight) for per_weight in rules]
            layers = over_time(self.timed, prompt, weights, weighting.scaling, dtype)
            yield from compress(zip(layout.layers, layers, strict=True), acting)
            return
        projected = self.key_values(prompt, device, acting)
        for layer, per_weight in compress(zip(layout.layers, rules, strict=True), acting):
            sources = next(projected)
            if wires.by_head:
                sources = {kind: one.normalised(layer.heads) for kind, one in sources.items()}
            folded = fold(sources, per_weight, weighting.scaling, dtype)
            if folded is not None:
                yield layer, replace(folded, images=prompt.pictures(per_weight[0].cond))

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        """Immutable: hosts that deep-copy what a graph carries get the same object."""
        return self


def build_projector(
    spec: AdapterSpec, image_proj: Mapping[str, Tensor], name: str = "the adapter"
) -> nn.Module:
    """The family's projector over the file's own tensors (their dtype,
    their device, no gradients)."""
    tensors = dict(image_proj)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    what = f"{name}: its {spec.family.value} projector"
    return loaded_module(lambda: spec.family.row.projector(shapes), tensors, what)


def loaded_module(build: Callable[[], M], tensors: Mapping[str, Tensor], what: str) -> M:
    """A module over a file's own tensors. what: it is, for messages."""
    try:
        with torch.device("meta"):
            module = build()
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise Problem.FILE_BROKEN(
            f"{what} is incomplete ({type(error).__name__}: {error}). Download the file again."
        ) from error
    _check(module, {key: tuple(value.shape) for key, value in tensors.items()}, what)
    require_finite(tensors, what.partition(":")[0])
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).train(False)


def _check(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Every expected key is there, with the expected shape, and no other."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    problems = [f"'{key}' is missing" for key in expected if key not in shapes]
    problems += [f"'{key}' is not part of it" for key in shapes if key not in expected]
    problems += [
        f"'{key}' has the shape {shapes[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise Problem.FILE_BROKEN(
            f"{what} does not fit: {'; '.join(problems[:3])}{more}. The file is damaged or of an "
            "unknown kind; download it again."
        )
