"""What an adapter is trained on: latents, image features and text states, computed once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..errors import Problem


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of samples, drops applied.

    latents: (samples, channels, height, width), clean, as the UNet sees them. features: (samples,
    ...), what the projector takes. text: (samples, length, width). vectors: (samples, n), what the
    base takes beside the text (SDXL's pooled text and sizes), or None. others: by name, (1, ...),
    what else it takes, the same for all (Flux's guidance).
    """

    latents: Tensor
    features: Tensor
    text: Tensor
    vectors: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        vectors = None if self.vectors is None else self.vectors.to(device)
        latents, features = self.latents.to(device), self.features.to(device)
        others = {name: value.to(device) for name, value in self.others.items()}
        return Batch(latents, features, self.text.to(device), vectors, others)


class Samples(Protocol):
    """A source of samples; `TrainingSet` is the one the nodes use."""

    def __len__(self) -> int: ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        ...

    @property
    def empty_text(self) -> Tensor:
        """(1, length, width), what stands for a dropped text."""
        ...

    @property
    def tells(self) -> bool:
        """Whether captions tell the pictures apart, so that a warm start can learn from them."""
        ...

    def batch(self, samples: Tensor, drop_image: Tensor, drop_text: Tensor) -> Batch:
        """Samples by number, (n,); flags, (n,), say whose image or text is dropped."""
        ...


@dataclass(frozen=True, eq=False)
class Prompts:
    """Text states, and what stands for a dropped text.

    states: (samples or 1, length, width); empty: (1, length, width). vectors and empty_vectors:
    (samples or 1, n) and (1, n), or None. others: by name, (1, ...), the same for all.
    """

    states: Tensor
    empty: Tensor
    vectors: Tensor | None = None
    empty_vectors: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def pick(self, samples: Tensor, drop: Tensor) -> tuple[Tensor, Tensor | None]:
        """States and vectors of some samples, the empty prompt where `drop` says so."""
        states = chosen_where(drop, self.empty, _rows(self.states, samples))
        if self.vectors is None or self.empty_vectors is None:
            return states, None
        return states, chosen_where(drop, self.empty_vectors, _rows(self.vectors, samples))


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Samples in memory.

    latents: (samples, channels, height, width). features: (samples, ...); no_features: (1, ...),
    what the projector is fed when the image is dropped.
    """

    latents: Tensor
    features: Tensor
    no_features: Tensor
    prompts: Prompts

    def __post_init__(self) -> None:
        """Refuse sets whose parts do not belong together."""
        count = len(self.latents)
        if count == 0:
            raise Problem.TRAINING_DATA("There is nothing to train on: connect at least one image.")
        if len(self.features) != count:
            raise Problem.TRAINING_DATA(
                f"There are {count} latents and {len(self.features)} images: expected one image "
                "per latent, in the same order."
            )
        if len(self.prompts.states) not in (1, count):
            raise Problem.TRAINING_DATA(
                f"There are {count} images and {len(self.prompts.states)} captions: expected one "
                "caption per image in the same order, or one for all."
            )
        for name, tensor in (("latents", self.latents), ("image features", self.features)):
            if not torch.isfinite(tensor).all():
                raise Problem.TRAINING_DATA(
                    f"The {name} have NaN or infinite values; the model that made them failed. "
                    "Try it in fp32."
                )

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return tuple(self.latents.shape[1:])

    @property
    def feature_width(self) -> int:
        """Last dimension of the image features."""
        return self.features.shape[-1]

    @property
    def empty_text(self) -> Tensor:
        """(1, length, width), what stands for a dropped text."""
        return self.prompts.empty

    @property
    def tells(self) -> bool:
        """Whether captions tell the pictures apart, so that a warm start can learn from them."""
        return bool((self.prompts.states != self.prompts.states[:1]).any())

    def batch(self, samples: Tensor, drop_image: Tensor, drop_text: Tensor) -> Batch:
        """Samples by number, with what is dropped replaced."""
        features = chosen_where(drop_image, self.no_features, self.features[samples])
        text = self.prompts.pick(samples, drop_text)
        return Batch(self.latents[samples], features, *text, self.prompts.others)


@dataclass(frozen=True, eq=False)
class Part:
    """Some samples of a set. rows: their numbers, (n,)."""

    whole: Samples
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return self.whole.latent_shape

    @property
    def empty_text(self) -> Tensor:
        """(1, length, width), what stands for a dropped text."""
        return self.whole.empty_text

    @property
    def tells(self) -> bool:
        """Whether captions tell the pictures apart, so that a warm start can learn from them."""
        return self.whole.tells

    def batch(self, samples: Tensor, drop_image: Tensor, drop_text: Tensor) -> Batch:
        """Samples by their number in this part."""
        return self.whole.batch(self.rows[samples], drop_image, drop_text)


def split(samples: Samples, share: float) -> tuple[Samples, Samples | None]:
    """Samples to train on, and those that are held out to judge by: a share of them, none where
    that is less than one. The same ones whatever the seed, so that a run that goes on, or another
    recipe, is judged by pictures it has not seen."""
    count = int(len(samples) * share)
    if not count:
        return samples, None
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    return Part(samples, order[count:].sort().values), Part(samples, order[:count].sort().values)


def same_length(states: Sequence[Tensor], joint: bool = False) -> list[Tensor]:
    """Repeat text states, (rows, length, width) each, to one length; attention over whole copies
    gives the same result, but not where it is `joint` with the picture's rows."""
    length = common_length({state.shape[1] for state in states}, joint)
    return [repeated(state, length) for state in states]


def repeated(states: Tensor, length: int) -> Tensor:
    """Text states, (rows, shorter, width), as copies behind one another."""
    return states.repeat(1, length // states.shape[1], 1)


def common_length(lengths: set[int], joint: bool = False) -> int:
    """Tokens that whole copies of all texts have. ValueError where that is very long, and where
    texts must not be repeated and differ."""
    length = math.lcm(*lengths)
    if joint and len(lengths) > 1:
        raise Problem.TRAINING_DATA(
            f"The captions have {', '.join(map(str, sorted(lengths)))} text tokens: this MODEL "
            "takes text and picture together, so all must be of one length. Shorten the longest."
        )
    if length > 8 * max(lengths):
        found = ", ".join(str(size) for size in sorted(lengths))
        raise Problem.TRAINING_DATA(
            f"The captions have {found} text tokens, which fit no common length: encode all of "
            "them with the same CLIP, without averaging or concatenating."
        )
    return length


def _rows(tensor: Tensor, samples: Tensor) -> Tensor:
    return tensor[samples if len(tensor) > 1 else torch.zeros_like(samples)]


def chosen_where(drop: Tensor, nothing: Tensor, something: Tensor) -> Tensor:
    """`nothing`, (1, ...), in the rows that are dropped."""
    flags = drop.view(-1, *[1] * (something.ndim - 1)).to(something.device)
    return torch.where(flags, nothing.to(something), something)
