"""Adapter files as they are found in the wild, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..files.kinds import Kind, kind_of, problem_of, why_not_an_adapter
from ..files.layouts import halves
from ..files.tensors import TensorMap, flatten, open_tensor_file
from .projector_names import official_names

__all__ = [
    "Checkpoint",
    "TensorMap",
    "checkpoint_from_dict",
    "checkpoint_from_tensors",
    "read_checkpoint",
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An adapter's two halves under the official names; tensors are read when they are looked up.

    `ip_adapter` keys are "{id}.to_k_ip.weight" and "{id}.to_v_ip.weight", and in FaceID files also
    the LoRA's "{id}.to_q_lora.down.weight" and so on.
    """

    image_proj: TensorMap
    ip_adapter: TensorMap
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    path: Path | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Open an adapter file. Only its header is read until a tensor is asked for."""
    path = Path(path)
    opened = open_tensor_file(path)
    return checkpoint_from_tensors(opened.tensors, path.name, opened.metadata, path)


def checkpoint_from_dict(state: Mapping[str, Any], name: str) -> Checkpoint:
    """An adapter from a state dict of any layout (files/layouts.py), flat or nested."""
    return checkpoint_from_tensors(TensorMap.of(flatten(state)), name)


def checkpoint_from_tensors(
    tensors: TensorMap,
    name: str,
    metadata: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Checkpoint:
    """Split flat keys into projector and layers; ValueError says what else the file is."""
    shapes = tensors.shapes()
    kind = kind_of(shapes)
    if kind is not Kind.ADAPTER:
        raise problem_of(kind)(why_not_an_adapter(name, shapes))
    found = halves(shapes)
    if found.clash:
        raise Problem.WRONG_FILE(
            f"{name} holds several adapters: '{found.clash[0]}' and '{found.clash[1]}' are the same"
            " part of two. Save them as one file each."
        )
    projector = tensors.renamed(found.projector)
    return Checkpoint(
        projector.stacked(official_names(projector.shapes())),
        tensors.renamed(found.layers),
        name,
        dict(metadata or {}),
        path,
    )
