"""What the encoders made of pictures and captions, on disk, so that it is computed once.

Every entry is a safetensors file named after the digest of all that it was made of: the picture's
bytes or the caption, the encoder's weights, the size. What changes, changes the name, so nothing
old is ever taken for new; a killed run leaves whole entries, and the next one goes on from them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapters.cache import digest
from ..errors import Problem
from .data import Batch, Prompts, chosen_where, repeated
from .share import ALONE, Share

_BYTES = 20  # of a digest


def digest_of(*parts: object) -> str:
    """Digest of bytes, tensors and whatever `repr` tells apart."""
    found = hashlib.blake2b(digest_size=_BYTES)
    for part in parts:
        found.update(hashlib.blake2b(_bytes(part), digest_size=_BYTES).digest())
    return found.hexdigest()


def _bytes(part: Any) -> bytes:
    if isinstance(part, Tensor):
        return f"{tuple(part.shape)} {digest(part.flatten())}".encode()
    return part if isinstance(part, bytes) else repr(part).encode()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Digest of a model's weights by name."""
    return digest_of(*(part for name in sorted(weights) for part in (name, weights[name])))


@dataclass(frozen=True)
class Store:
    """A folder of entries; several runs may share it."""

    folder: Path

    def path(self, key: str) -> Path:
        """Where an entry is; not more than a few thousand in one folder."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether an entry is there and whole; one that a failing disk has cut is removed."""
        path = self.path(key)
        try:
            with safe_open(path, "pt"):
                return True
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)
            return False

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry, whole or not at all."""
        path = self.path(key)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(suffix=".part", dir=path.parent)
            os.close(handle)
            try:
                save_file(plain, partial)
                Path(partial).replace(path)
            finally:
                Path(partial).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise Problem.WRITE_FAILED(
                f"What the encoders made could not be written to {self.folder} ({error}). Free "
                "some space and run the node again, it goes on from there; or switch off "
                "keep_encoded, which keeps everything in memory."
            ) from error

    def get(self, key: str) -> dict[str, Tensor]:
        """An entry's tensors."""
        try:
            return load_file(self.path(key))
        except (OSError, SafetensorError) as error:
            raise Problem.FILE_BROKEN(
                f"{self.path(key)} cannot be read ({error}). Run the node again: what is missing "
                "is computed anew."
            ) from error

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """Shape of one of an entry's tensors, which is not read."""
        with safe_open(self.path(key), "pt") as file:
            return tuple(cast("list[int]", file.get_slice(name).get_shape()))

    def fill(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], list[dict[str, Tensor]]],
        at_a_time: int,
        share: Share = ALONE,
    ) -> None:
        """Let `make` compute what is missing, a few entries at a time; it is told their numbers.
        share: each of several processes makes its part, and waits for the others'."""
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        mine = sorted(first.values())[share.rank :: share.world]
        missing = [number for number in mine if not self.has(keys[number])]
        for start in range(0, len(missing), at_a_time):
            numbers = missing[start : start + at_a_time]
            for number, tensors in zip(numbers, make(numbers), strict=True):
                self.put(keys[number], tensors)
        share.mean(torch.zeros(()))


@dataclass(frozen=True)
class Row:
    """The keys of one sample's latents, features and text."""

    latents: str
    features: str
    text: str


@dataclass(frozen=True, eq=False)
class StoredSet:
    """Samples on disk, of which a batch is read at a time.

    no_features: (1, ...); empty: the text of a dropped caption, of the common length already.
    latent_in: from the VAE's latents to those that the base sees.
    """

    store: Store
    rows: tuple[Row, ...]
    no_features: Tensor
    empty: Prompts
    latent_in: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return self.store.shape(self.rows[0].latents, "latents")[1:]

    @property
    def feature_width(self) -> int:
        """Last dimension of the image features."""
        return self.no_features.shape[-1]

    @property
    def empty_text(self) -> Tensor:
        """(1, length, width), what stands for a dropped text."""
        return self.empty.empty

    @property
    def tells(self) -> bool:
        """Whether captions tell the pictures apart, so that a warm start can learn from them."""
        return len({row.text for row in self.rows}) > 1

    def batch(self, samples: Tensor, drop_image: Tensor, drop_text: Tensor) -> Batch:
        """Samples by number, with what is dropped replaced."""
        numbers = cast("list[int]", samples.tolist())
        rows = [self.rows[number] for number in numbers]
        latents = torch.cat([self.store.get(row.latents)["latents"] for row in rows])
        features = torch.cat([self.store.get(row.features)["features"] for row in rows])
        texts = [self.store.get(row.text) for row in rows]
        length = self.empty.empty.shape[1]
        states = torch.cat([repeated(text["states"], length).float() for text in texts])
        vectors = torch.cat([text["vectors"] for text in texts]) if "vectors" in texts[0] else None
        prompts = Prompts(states, self.empty.empty, vectors, self.empty.empty_vectors)
        return Batch(
            self.latent_in(latents.float()),
            chosen_where(drop_image, self.no_features, features.float()),
            *prompts.pick(torch.arange(len(rows)), drop_text),
            self.empty.others,
        )
