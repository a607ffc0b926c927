"""An adapter's to_k_ip and to_v_ip pairs: checked, and tokens projected through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.folding import KeyValue
from ..errors import Problem
from ..files.tensors import Shape, Shapes
from .linear import pieces
from .wiring import KEY, VALUE, Wiring

TOKENS_AT_ONCE = 1024  # of per-latent prompts, together on the compute device


def project_rows(
    rows: Tensor, weight: Tensor, device: torch.device | str, bias: Tensor | None = None
) -> Tensor:
    """(rows, dim) to (rows, width), in parts on the device, gathered on the CPU: the device's share
    does not grow with the number of frames."""
    out = torch.empty(rows.shape[0], weight.shape[0])
    for part, piece in pieces(weight, device):
        for begin in range(0, rows.shape[0], TOKENS_AT_ONCE):
            some = slice(begin, begin + TOKENS_AT_ONCE)
            out[some, part] = functional.linear(rows[some].to(device), piece).cpu()
    return out if bias is None else out.add_(bias.float().cpu())


def by_kind(key: Tensor, value: Tensor, tokens: Iterable[Tensor]) -> Iterator[KeyValue]:
    """Keys and values of each kind of tokens: (items, tokens, width), views."""
    begin = 0
    for kind in tokens:
        end = begin + kind.shape[0] * kind.shape[1]
        yield KeyValue(*(part[begin:end].unflatten(0, kind.shape[:2]) for part in (key, value)))
        begin = end


@dataclass(frozen=True)
class LayerFacts:
    """An adapter's layers: their wiring, the width of the tokens that they take, the widths that
    they give, in id order."""

    wiring: Wiring
    token_dim: int
    widths: tuple[int, ...]


def read_layers(ip_adapter: Shapes, name: str) -> LayerFacts:
    """What an adapter's layers are, checked."""
    layers: dict[int, dict[str, Shape]] = {}
    for key, shape in ip_adapter.items():
        number, _, part = key.partition(".")
        if number.isdigit() and "_lora." not in part:
            layers.setdefault(int(number), {})[part] = shape
        elif "to_k_ip" in key or "to_v_ip" in key:
            raise _unknown_layers(name, key)
    if not any(part in layer for layer in layers.values() for part in (KEY, VALUE)):
        raise Problem.FILE_BROKEN(
            f"{name} has no 'to_k_ip' and 'to_v_ip' layers. Download it again."
        )
    wiring = _wiring(layers, name)
    widths = tuple(_pair(layer, number, name) for number, layer in sorted(layers.items()))
    token_dims = {layer[KEY][1] for layer in layers.values()}
    if len(token_dims) != 1:
        raise Problem.FILE_BROKEN(
            f"{name}: its layers take tokens of different widths {sorted(token_dims)}, expected "
            "one. The file is damaged; download it again."
        )
    return LayerFacts(wiring, token_dims.pop(), widths)


def _wiring(layers: Mapping[int, Mapping[str, Shape]], name: str) -> Wiring:
    """By how the layers are numbered and what each of them holds."""
    ids = sorted(layers)
    from_zero = ids == list(range(len(ids)))
    if not from_zero and ids != list(range(1, 2 * len(ids), 2)):
        raise _broken_ids(ids, name)
    holds = {part for layer in layers.values() for part in layer}
    found = Wiring.of_transformer(frozenset(holds)) if from_zero else Wiring.UNET
    strange = sorted(holds - Wiring.UNET.value.holds)
    if found is None or (found is Wiring.UNET and strange):
        raise _unknown_layers(name, f"{ids[0]}.{strange[0]}")
    for number, layer in sorted(layers.items()):
        for part in sorted(found.value.holds - layer.keys()):
            raise Problem.FILE_BROKEN(
                f"{name}: '{number}.{part}' is missing. Download the file again."
            )
    return found


def _unknown_layers(name: str, key: str) -> ValueError:
    return Problem.UNSUPPORTED(
        f"{name} is an adapter whose layers are of an unknown kind: it has '{key}'. This pack "
        "takes adapters for UNet models (SD1.5, SD2, SDXL, Kolors), those of XLabs and InstantX "
        "for Flux, InstantX's for SD3.5-Large, and those that IPAdapter Train makes."
    )


def _broken_ids(ids: list[int], name: str) -> ValueError:
    odd = ids[0] % 2 == 1
    numbers = "1, 3, 5" if odd else "0, 1, 2"
    missing = sorted(set(range(int(odd), ids[-1] + 1, 1 + odd)) - set(ids))
    unexpected = [number for number in ids if odd and number % 2 == 0]
    found = (
        f"layers {missing[:4]} are missing"
        if missing
        else f"layers {unexpected[:4]} are unexpected"
    )
    return Problem.FILE_BROKEN(
        f"{name}: {found}; expected to_k_ip and to_v_ip for {numbers} ... {ids[-1]}. Download the "
        "file again."
    )


def _pair(layer: Mapping[str, Shape], number: int, name: str) -> int:
    """Output width of a to_k_ip/to_v_ip pair."""
    key, value = layer[KEY], layer[VALUE]
    if len(key) != 2 or key != value or not all(0 < side <= 1 << 16 for side in key):
        raise Problem.FILE_BROKEN(
            f"{name}: layer {number} has to_k_ip {key} and to_v_ip {value}, expected two equal "
            "matrices. The file is damaged; download it again."
        )
    return key[0]
