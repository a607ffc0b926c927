"""Weights files: matrices as 8-bit integers with one scale per output row, the rest in fp16."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
SCALE = ".scale"


def pack(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half the size of fp16; the error of a weight is at most 1/254 of its row's largest."""
    packed = {}
    for key, value in state.items():
        tensor = value.detach().float().cpu().contiguous()
        if tensor.ndim < 2:
            packed[key] = tensor.half()
            continue
        peak = tensor.flatten(1).abs().amax(1).clamp(min=1e-6)
        scale = (peak / 127).half()
        shape = (-1, *[1] * (tensor.ndim - 1))
        rounded = (tensor / scale.float().view(shape)).round().clamp(-127, 127)
        packed[key], packed[key + SCALE] = rounded.to(torch.int8).contiguous(), scale
    return packed


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in float32."""
    state = {}
    for key, value in packed.items():
        if key.endswith(SCALE):
            continue
        tensor = value.float()
        if key + SCALE in packed:
            shape = (-1, *[1] * (tensor.ndim - 1))
            tensor = tensor * packed[key + SCALE].float().view(shape)
        state[key] = tensor
    return state


def save(
    state: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write `state` packed."""
    save_file(pack(state), path, metadata)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights in float32 and the metadata; plain fp16 files are read as well."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return unpack(tensors), metadata


def write_half(
    state: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> Path:
    """Write a model in fp16, where the host looks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in state.items()}, path, metadata)
    return path
