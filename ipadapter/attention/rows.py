"""What is the same for every block of one model call: which rows are cond, which latents and which
part of the picture they are, and how noisy.

A block is given rows, one per latent and prompt. A chunk is the rows of one prompt, one after
another; the host numbers chunks in `cond_or_uncond`. An item is the latent of the whole batch that
a row is: windows and tiles show some of them. A group is rows that share keys and values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from .sigmas import PercentRange, SigmaRange

# Where the host seam puts the state of a model call, and that of a sampling run, among the
# transformer options.
CALL_KEY = "ip_adapter_call"
RUN_KEY = "ip_adapter_run"

logger = logging.getLogger("ipadapter")

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
    percent_to_sigma: the noise schedule of the MODEL that samples; None if it is not known.
    fresh: whether the host's own attention makes a tensor that nobody else holds.
    """

    is_cond: tuple[bool, ...]
    items: tuple[int, ...]
    batch: int | None = None
    sigmas: Tensor | None = None
    crops: tuple[Crop | None, ...] = ()
    placed: bool = True
    prepared: MutableMapping[Any, Any] = field(default_factory=dict[Any, Any])
    percent_to_sigma: Callable[[float], float] | None = None
    fresh: bool = False
    _rows: dict[int, Rows] = field(default_factory=dict[int, Rows], init=False)

    @cached_property
    def sigma(self) -> float | None:
        """Noise level. Read from the device when first asked for, so at most once per call."""
        return None if self.sigmas is None else float(self.sigmas.flatten()[0])

    def range_of(self, span: PercentRange, usual: SigmaRange) -> SigmaRange:
        """A range in the noise schedule that samples; `usual` where that is not known."""
        if self.percent_to_sigma is None:
            return usual
        slot = (span, self.percent_to_sigma)
        found = self.prepared.get(slot)
        if found is None:
            found = self.prepared[slot] = span.resolved(self.percent_to_sigma)
        return found

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
    def of_block(cls, extra: Extra, count: int) -> CallState:
        """The state that the host seam put among a block's options; where a caller went past the
        model's own call, that of the sampling run, or else what the options tell."""
        known = extra.get(CALL_KEY)
        if known is not None:
            return known
        run = extra.get(RUN_KEY)
        return cls.from_extra(extra, count) if run is None else run.call_state(extra, count)

    @classmethod
    def from_extra(cls, extra: Extra, count: int) -> CallState:
        """State of a caller that runs the model without the host seam: by `cond_or_uncond`
        alone, else all cond."""
        flags = tuple(index == 0 for index in extra.get("cond_or_uncond") or (0,))
        chunk = max(count // len(flags), 1)
        return cls(flags, items_of(extra, chunk), count, extra.get("sigmas"))

    def __deepcopy__(self, memo: dict[int, Any]) -> CallState:
        """Shared by everything that runs in this call."""
        return self


def _repeat(values: tuple[Any, ...], times: list[int]) -> tuple[Any, ...]:
    return tuple(value for value, n in zip(values, times, strict=True) for _ in range(n))


def items_of(extra: Extra, chunk: int) -> tuple[int, ...]:
    """Which latents of the whole batch the rows of one chunk are.

    Core context windows name them in `context_window.index_list`, with a frame before them in
    `causal_anchor_index` where one is put there; AnimateDiff-Evolved in `ad_params["sub_idxs"]`.
    """
    window = extra.get("context_window")
    if window is not None and getattr(window, "dim", 0) == 0:
        named = list(getattr(window, "index_list", ()))
        anchor = getattr(window, "causal_anchor_index", None)
        if anchor is not None and anchor >= 0 and chunk % (len(named) + 1) == 0:
            named = [anchor, *named]
    else:
        evolved: Mapping[str, Any] = extra.get("ad_params") or {}
        named = list(evolved.get("sub_idxs") or ())
    if not named:
        return tuple(range(chunk))
    if chunk % len(named) == 0:
        return tuple(int(i) for i in named) * (chunk // len(named))
    _warn_unknown_items(len(named), chunk)
    return tuple(int(named[i * len(named) // chunk]) for i in range(chunk))


@lru_cache(maxsize=64)
def _warn_unknown_items(named: int, chunk: int) -> None:
    """Say once for each pair of numbers that frames may be taken for their neighbours."""
    logger.warning(
        "This sampling works on windows of a batch: it names %d latents and samples %d, so which "
        "picture, weight and mask belongs to which latent can only be estimated. Use a window "
        "without added frames for exact ones.",
        named,
        chunk,
    )
