"""An adapter's to_k_ip and to_v_ip pairs: checked, and tokens projected through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ..attention.folding import KeyValue
from ..errors import Problem
from ..files.tensors import Shapes
from .linear import pieces

TOKENS_AT_ONCE = 1024  # of per-latent prompts, together on the compute device


def project_rows(rows: Tensor, weight: Tensor, device: torch.device | str) -> Tensor:
    """(rows, dim) to (rows, width), in parts on the device, gathered on the CPU: the device's share
    does not grow with the number of frames."""
    out = torch.empty(rows.shape[0], weight.shape[0])
    for part, piece in pieces(weight, device):
        for begin in range(0, rows.shape[0], TOKENS_AT_ONCE):
            some = slice(begin, begin + TOKENS_AT_ONCE)
            out[some, part] = functional.linear(rows[some].to(device), piece).cpu()
    return out


def by_kind(key: Tensor, value: Tensor, tokens: Iterable[Tensor]) -> Iterator[KeyValue]:
    """Keys and values of each kind of tokens: (items, tokens, width), views."""
    begin = 0
    for kind in tokens:
        end = begin + kind.shape[0] * kind.shape[1]
        yield KeyValue(*(part[begin:end].unflatten(0, kind.shape[:2]) for part in (key, value)))
        begin = end


def read_layers(ip_adapter: Shapes, name: str) -> tuple[int, tuple[int, ...]]:
    """(context width, output widths in id order) of the to_k_ip/to_v_ip pairs, checked."""
    ids: dict[int, set[str]] = {}
    for key in ip_adapter:
        number, _, kind = key.partition(".")
        if kind in ("to_k_ip.weight", "to_v_ip.weight") and number.isdigit():
            ids.setdefault(int(number), set()).add(kind)
        elif "to_k_ip" in key or "to_v_ip" in key or "norm" in key:
            verb = "is" if "norm" in key else "may be"  # no adapter of a UNet has norms
            raise Problem.UNSUPPORTED(
                f"{name} {verb} an adapter for a transformer model (such as Flux or SD3.5): it has "
                f"'{key}'. This pack needs an adapter for a UNet model (SD1.5, SD2, SDXL, Kolors)."
            )
    if not ids:
        raise Problem.FILE_BROKEN(
            f"{name} has no 'to_k_ip' and 'to_v_ip' layers. Download it again."
        )
    if sorted(ids) != list(range(1, 2 * len(ids), 2)):
        _refuse_ids(sorted(ids), name)
    widths = tuple(_pair(ip_adapter, number, kinds, name) for number, kinds in sorted(ids.items()))
    token_dims = {ip_adapter[f"{number}.to_k_ip.weight"][1] for number in ids}
    if len(token_dims) != 1:
        raise Problem.FILE_BROKEN(
            f"{name}: its layers take tokens of different widths {sorted(token_dims)}, expected "
            "one. The file is damaged; download it again."
        )
    return token_dims.pop(), widths


def _refuse_ids(ids: list[int], name: str) -> None:
    if ids == list(range(len(ids))):
        raise Problem.UNSUPPORTED(
            f"{name} is an adapter for a transformer model (such as Flux or SD3.5): its {len(ids)} "
            "layers are numbered 0, 1, 2 and so on. This pack needs an adapter for a UNet model "
            "(SD1.5, SD2, SDXL, Kolors)."
        )
    missing = sorted(set(range(1, ids[-1] + 1, 2)) - set(ids))
    odd = [number for number in ids if number % 2 == 0]
    found = f"layers {missing[:4]} are missing" if missing else f"layers {odd[:4]} are unexpected"
    raise Problem.FILE_BROKEN(
        f"{name}: {found}; expected to_k_ip and to_v_ip for 1, 3, 5 ... {ids[-1]}. Download the "
        "file again."
    )


def _pair(ip_adapter: Shapes, number: int, kinds: set[str], name: str) -> int:
    """Output width of a to_k_ip/to_v_ip pair."""
    if len(kinds) != 2:
        missing = ({"to_k_ip.weight", "to_v_ip.weight"} - kinds).pop()
        raise Problem.FILE_BROKEN(
            f"{name}: '{number}.{missing}' is missing. Download the file again."
        )
    key, value = (ip_adapter[f"{number}.{kind}"] for kind in ("to_k_ip.weight", "to_v_ip.weight"))
    if len(key) != 2 or key != value or not all(0 < side <= 1 << 16 for side in key):
        raise Problem.FILE_BROKEN(
            f"{name}: layer {number} has to_k_ip {key} and to_v_ip {value}, expected two equal "
            "matrices. The file is damaged; download it again."
        )
    return key[0]
