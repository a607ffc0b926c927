"""Recent results, found again by content: changing a weight must not encode
or project anything anew."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock

import torch
from torch import Tensor


def digest(*tensors: Tensor | None) -> str:
    """A key for the content of tensors: type, shape and every byte."""
    sums = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is None:
            sums.update(b"none")
            continue
        sums.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sums.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sums.hexdigest()


class TensorCache:
    """Tuples of tensors by key, the least recently used dropped first, within a number of bytes."""

    def __init__(self, limit: int) -> None:
        """limit: bytes of all entries together."""
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """The entry of a key, made if it is not there. What is returned must not be changed."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        made = tuple(make())
        size = _bytes(made)
        with self._lock:
            if key not in self._entries and size <= self._limit // 2:
                self._entries[key] = made
                self._held += size
                while self._held > self._limit:
                    self._held -= _bytes(self._entries.popitem(last=False)[1])
        return made

    def nbytes(self) -> int:
        """Bytes held."""
        return self._held


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
