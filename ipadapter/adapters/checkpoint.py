"""Adapter files as they are found in the wild, in one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..files.kinds import LAYER_PREFIXES, PROJECTOR_PREFIXES, Kind, kind_of, why_not_an_adapter
from ..files.tensors import TensorMap, flatten, open_tensor_file

__all__ = [
    "Checkpoint",
    "TensorMap",
    "checkpoint_from_dict",
    "checkpoint_from_tensors",
    "read_checkpoint",
]

# Resamplers that were saved from diffusers' layout instead of the official one: (theirs, ours).
_RESAMPLER_NAMES = (
    (".ln0.", ".0.norm1."),
    (".ln1.", ".0.norm2."),
    (".attn.", ".0."),
    (".ff.0.", ".1.0."),
    (".ff.1.net.0.proj.", ".1.1."),
    (".ff.1.net.2.", ".1.3."),
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An adapter's two halves under the official names; tensors are read when they are looked up.

    `ip_adapter` keys are "{id}.to_k_ip.weight" and "{id}.to_v_ip.weight", and in FaceID files also
    the LoRA's "{id}.to_q_lora.down.weight" and so on.
    """

    image_proj: TensorMap
    ip_adapter: TensorMap
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Open an adapter file. Only its header is read until a tensor is asked for."""
    path = Path(path)
    opened = open_tensor_file(path)
    return checkpoint_from_tensors(opened.tensors, path.name, opened.metadata, path)


def checkpoint_from_dict(state: Mapping[str, Any], name: str) -> Checkpoint:
    """An adapter from a state dict: flat keys, or nested {image_proj: {...},
    ip_adapter or adapter_modules: {...}}."""
    return checkpoint_from_tensors(TensorMap.of(flatten(state)), name)


def checkpoint_from_tensors(
    tensors: TensorMap,
    name: str,
    metadata: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Checkpoint:
    """Split flat keys into projector and layers; ValueError says what else the file is."""
    if kind_of(tensors) is not Kind.ADAPTER:
        raise Problem.WRONG_FILE(why_not_an_adapter(name, tensors))
    projector = {
        _official_name(new): old for new, old in _under(tensors, PROJECTOR_PREFIXES).items()
    }
    layers = _under(tensors, LAYER_PREFIXES)
    return Checkpoint(
        tensors.renamed(projector), tensors.renamed(layers), name, dict(metadata or {}), path
    )


def _under(keys: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """{key without its prefix: key} for the keys that have one of the prefixes."""
    return {
        key[len(prefix) :]: key for key in keys for prefix in prefixes if key.startswith(prefix)
    }


def _official_name(key: str) -> str:
    if "layers." in key:
        for theirs, ours in _RESAMPLER_NAMES:
            key = key.replace(theirs, ours)
    return key
