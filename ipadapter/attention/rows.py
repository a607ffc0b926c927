"""What is the same for every block of one model call: which rows are cond, which latents and which
part of the picture they are, and how noisy."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

CALL_KEY = "ip_adapter_call"  # where the host seam puts a CallState among the transformer options

Extra = Mapping[str, Any]


class Crop(NamedTuple):
    """A part of the picture, as fractions of its height and width."""

    top: float
    left: float
    bottom: float
    right: float


class Rows(NamedTuple):
    """How a batch is made up: one chunk after another, each with one row per item.

    is_cond, crops: per chunk. items: which latent of the whole batch each row of a chunk is.
    """

    is_cond: tuple[bool, ...]
    items: tuple[int, ...]
    crops: tuple[Crop | None, ...]


@dataclass(frozen=True, eq=False)
class CallState:
    """One call of the model.

    is_cond: per chunk of rows, whether it belongs to the positive prompt. items: which latent of
    the whole batch each row of a chunk is (windows of long batches). batch: rows that the model was
    given, if known. sigmas: noise levels, on the device. crops: per chunk the part of the picture
    that it shows, None for the whole of it; `placed` is False if the host does not tell.
    prepared: device copies of keys, values and masks, alive for one sampling run.
    """

    is_cond: tuple[bool, ...]
    items: tuple[int, ...]
    batch: int | None = None
    sigmas: Tensor | None = None
    crops: tuple[Crop | None, ...] = ()
    placed: bool = True
    prepared: MutableMapping[Any, Any] = field(default_factory=dict)
    _rows: dict[int, Rows] = field(default_factory=dict, init=False)

    @cached_property
    def sigma(self) -> float | None:
        """Noise level. Read from the device when first asked for, so at most once per call."""
        return None if self.sigmas is None else float(self.sigmas.flatten()[0])

    def rows(self, count: int) -> Rows:
        """The make-up of a block's batch of `count` rows."""
        found = self._rows.get(count)
        if found is None:
            found = self._rows[count] = self._make_rows(count)
        return found

    def _make_rows(self, count: int) -> Rows:
        chunks, per_chunk = len(self.is_cond), len(self.items)
        crops = self.crops or (None,) * chunks
        if self.batch not in (None, count):
            coupled = self._coupled(count, crops)
            if coupled is not None:
                return coupled
        if count % (chunks * per_chunk) == 0:  # tiles: the whole batch again for every tile
            tiles = count // (chunks * per_chunk)
            return Rows(self.is_cond * tiles, self.items, crops * tiles)
        if count % chunks == 0:
            return Rows(self.is_cond, tuple(range(count // chunks)), crops)
        return Rows((True,), tuple(range(count)), (None,))

    def _coupled(self, count: int, crops: tuple[Crop | None, ...]) -> Rows | None:
        """Attention couple and its kin repeat the cond chunks inside the block, once per region."""
        conds = sum(self.is_cond)
        extra = count - len(self.is_cond) * len(self.items)
        if not conds or extra <= 0 or extra % (conds * len(self.items)):
            return None
        regions = 1 + extra // (conds * len(self.items))
        repeats = [regions if is_cond else 1 for is_cond in self.is_cond]
        return Rows(_repeat(self.is_cond, repeats), self.items, _repeat(crops, repeats))

    @classmethod
    def from_extra(cls, extra: Extra, count: int) -> CallState:
        """State of a caller that runs the model without the host seam: by `cond_or_uncond`
        alone, else all cond."""
        flags = tuple(index == 0 for index in extra.get("cond_or_uncond") or (0,))
        chunk = max(count // len(flags), 1)
        return cls(flags, items_of(extra, chunk), count, extra.get("sigmas"))

    def __deepcopy__(self, memo: dict) -> CallState:
        """Shared by everything that runs in this call."""
        return self


def _repeat(values: tuple[Any, ...], times: list[int]) -> tuple[Any, ...]:
    return tuple(value for value, n in zip(values, times, strict=True) for _ in range(n))


def items_of(extra: Extra, chunk: int) -> tuple[int, ...]:
    """Which latents of the whole batch the rows of one chunk are.

    Core context windows name them in `context_window.index_list`, AnimateDiff-Evolved in
    `ad_params["sub_idxs"]`.
    """
    window = getattr(extra.get("context_window"), "index_list", None)
    if window is None:
        window = (extra.get("ad_params") or {}).get("sub_idxs")
    if window is not None and len(window) and chunk % len(window) == 0:
        return tuple(int(i) for i in window) * (chunk // len(window))
    return tuple(range(chunk))
