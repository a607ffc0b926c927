"""Image embeds: what an encoder or a face model saw, to combine, keep and use again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..adapters.families import FACE_WIDTH
from ..adapters.spec import AdapterSpec
from ..adapters.vision import EmbedSource, encoder_name
from ..errors import Problem, plain_text
from ..files.paths import write_numbered
from ..files.tensors import open_tensor_file

logger = logging.getLogger("ipadapter")

_Item = TypeVar("_Item")

OLD_SUFFIX = ".ipadpt"
SUFFIX = ".ipadpt.safetensors"
FORMAT = "ipadapter_embeds"
VERSIONS = ("1", "2")  # 2: with `keep`, which a reader of 1 would leave out


class CombineMethod(str, Enum):
    """How the embeds of several images become one prompt."""

    CONCAT = "concat"
    ADD = "add"
    SUBTRACT = "subtract"
    AVERAGE = "average"
    NORM_AVERAGE = "norm average"
    MAX = "max"
    MIN = "min"


def combine_embeds(
    embeds: Sequence[Tensor], method: CombineMethod, names: Sequence[str] = ()
) -> Tensor:
    """Join embeds (images, ..., dim) of any number of images each into one tensor.

    CONCAT keeps all images, every other method returns (1, ..., dim). SUBTRACT takes the mean of
    all other images from the first. NORM_AVERAGE averages directions: each embedding (the last
    axis) is brought to length 1 first, so that none outweighs another, and the result gets their
    mean length, because that is the size that projectors are trained on.
    """
    _check_combinable(embeds, names)
    images = torch.cat([embed.to(embeds[0]) for embed in embeds])
    if method is CombineMethod.SUBTRACT and len(images) < 2:
        raise Problem.WRONG_INPUT(
            'Combine method "subtract" needs something to subtract: got one image. Connect a '
            "second one, or choose another method."
        )
    return _METHODS[method](images)


def _subtract(images: Tensor) -> Tensor:
    return images[:1] - images[1:].mean(0, keepdim=True)


def _norm_average(images: Tensor) -> Tensor:
    lengths = images.norm(dim=-1, keepdim=True)
    directions = images / lengths.clamp(min=torch.finfo(images.dtype).tiny)
    return directions.mean(0, keepdim=True) * lengths.mean(0, keepdim=True)


_METHODS: Mapping[CombineMethod, Callable[[Tensor], Tensor]] = {
    CombineMethod.CONCAT: lambda images: images,
    CombineMethod.ADD: partial(torch.sum, dim=0, keepdim=True),
    CombineMethod.SUBTRACT: _subtract,
    CombineMethod.AVERAGE: partial(torch.mean, dim=0, keepdim=True),
    CombineMethod.NORM_AVERAGE: _norm_average,
    CombineMethod.MAX: partial(torch.amax, dim=0, keepdim=True),
    CombineMethod.MIN: partial(torch.amin, dim=0, keepdim=True),
}


@dataclass(frozen=True)
class AdapterLabel:
    """The adapter that embeds were made for, as messages and files name it."""

    name: str = ""
    family: str = ""
    base: str = ""
    encoder: str = ""
    num_tokens: int = 0
    digest: str = ""

    @classmethod
    def of(cls, spec: AdapterSpec, name: str, digest: str = "") -> AdapterLabel:
        """Describe an adapter; `digest` tells files of the same name apart."""
        family, base = spec.family.value, spec.base_name
        return cls(name, family, base, spec.encoder_name, spec.num_tokens, digest)

    def __str__(self) -> str:
        described = f"{self.family} for {self.base}" if self.family else ""
        return " ".join(filter(None, [self.name, f"({described})" if described else ""]))


@dataclass(frozen=True, eq=False)
class ImageEmbeds:
    """What an adapter's projector is fed, before projection, and where it came from.

    features: (images, dim) pooled or (images, tokens, dim) hidden states; None for families that
    take a face alone. face: (images, 512); `raw_face` if it is not normalised to length 1.
    `weight` is already in the features. source: an EmbedSource. keep: (images, tokens) bool, the
    hidden states that a reference mask leaves; None for all. shows: per image, whether there was
    anything to see in it (one without a face keeps its place in a batch); empty for all.
    """

    features: Tensor | None
    source: EmbedSource
    face: Tensor | None = None
    raw_face: bool = False
    weight: float = 1.0
    made_for: AdapterLabel = AdapterLabel()
    keep: Tensor | None = None
    shows: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        wants_face = self.source.reads_face
        if (self.face is not None) != wants_face:
            raise ValueError(f"Embeds of {self.source.value} {_must(wants_face)} a face embedding.")
        wants_features = self.source.reads_picture
        if (self.features is not None) != wants_features:
            raise ValueError(
                f"Embeds of {self.source.value} {_must(wants_features)} image features."
            )
        for name, tensor in self.tensors().items():
            _check_tensor(name, tensor, self._rank(name))
        if self.keep is not None:
            _check_keep(self.keep, self.features)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        both = {"features": self.features, "face": self.face}
        return {name: tensor for name, tensor in both.items() if tensor is not None}

    def __len__(self) -> int:
        """Number of images."""
        return len(next(iter(self.tensors().values())))

    def __str__(self) -> str:
        parts: list[str] = []
        if self.features is not None:
            name = encoder_name(self.source, self.features.shape[-1])
            parts.append(f"{self.source.output.value} of {name}")
        if self.face is not None:
            parts.append("a raw face embedding" if self.raw_face else "a face embedding")
        origin = f", made for {self.made_for}" if self.made_for.name else ""
        return " and ".join(parts) + origin

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageEmbeds:
        """The same embeds with every tensor changed."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def lengthened(self, count: int) -> ImageEmbeds:
        """As many images as there are latents: the last one serves the rest."""
        picked = lengthened(range(len(self)), count)
        parts = self.tensors() | ({} if self.keep is None else {"keep": self.keep})
        shows = tuple(lengthened(self.shows, count)) if self.shows else ()
        return replace(self, **{name: part[picked] for name, part in parts.items()}, shows=shows)

    def _rank(self, name: str) -> int:
        return 2 if name == "face" or self.source is EmbedSource.POOLED else 3


def lengthened(items: Sequence[_Item], count: int) -> list[_Item]:
    """`count` items, of which the last given one serves the rest."""
    return [items[min(index, len(items) - 1)] for index in range(count)]


def as_image_embeds(value: Any, name: str = "embeds") -> ImageEmbeds:
    """Understand an EMBEDS payload: our own, or a bare tensor, known by its shape."""
    if isinstance(value, ImageEmbeds):
        return value
    if not isinstance(value, Tensor) or value.ndim not in (2, 3):
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Problem.WRONG_INPUT(
            f"{name}: expected embeds (images, dim) or (images, tokens, dim), got {found}."
        )
    if value.shape[-1] == FACE_WIDTH:
        return ImageEmbeds(None, EmbedSource.FACE, face=value.flatten(0, -2))
    source = EmbedSource.POOLED if value.ndim == 2 else EmbedSource.HIDDEN
    return ImageEmbeds(value, source)


def combine_image_embeds(
    embeds: Sequence[ImageEmbeds], method: CombineMethod, names: Sequence[str] = ()
) -> ImageEmbeds:
    """Combine features with features and faces with faces; they must be of one source."""
    first, names = embeds[0], names or _numbered(len(embeds))
    for name, other in zip(names, embeds, strict=True):
        if other.source is not first.source or other.raw_face != first.raw_face:
            raise Problem.EMBEDS_MISMATCH(
                f"{names[0]} and {name} cannot be combined: {names[0]} is {first}; {name} is "
                f"{other}. Encode both with the same adapter."
            )
    combined = {
        part: combine_embeds([embed.tensors()[part] for embed in embeds], method, names)
        for part in first.tensors()
    }
    weight = first.weight if len(embeds) == 1 else 1.0
    keep = _combine_keep(embeds, method)
    return replace(first, **combined, weight=weight, keep=keep, shows=())


def _combine_keep(embeds: Sequence[ImageEmbeds], method: CombineMethod) -> Tensor | None:
    """What is kept of any image is kept of the mix."""
    if all(embed.keep is None for embed in embeds):
        return None
    kept = torch.cat(
        [
            features.new_ones(features.shape[:2], dtype=torch.bool) if keep is None else keep
            for features, keep in ((embed.features, embed.keep) for embed in embeds)
            if features is not None
        ]
    )
    return kept if method is CombineMethod.CONCAT else kept.any(dim=0, keepdim=True)


def check_belongs(embeds: ImageEmbeds, spec: AdapterSpec, adapter: str, name: str) -> None:
    """Raise ValueError, naming both, unless these embeds are what the adapter's projector takes.

    Another adapter's embeds are fine where both take the same: Plus and Plus Face, or Standard for
    SD1.5 and the ViT-H one for SDXL.
    """
    if wanted := _mismatch(embeds, spec):
        raise Problem.EMBEDS_MISMATCH(
            f"{name} does not belong to {adapter}: it holds {embeds}, but {adapter} needs "
            f"{wanted}. Encode the image again with {adapter}, or load the adapter it was made for."
        )


def is_embeds_file(name: str) -> bool:
    """Whether the load node lists this file."""
    return name.lower().endswith((OLD_SUFFIX, SUFFIX))


def save_embeds(embeds: ImageEmbeds, stem: Path) -> Path:
    """Write a new numbered file `stem_00001_.ipadpt.safetensors`; returns its path."""
    label = {f"adapter_{key}": str(value) for key, value in vars(embeds.made_for).items()}
    metadata = {
        "format": FORMAT,
        "version": VERSIONS[embeds.keep is not None],
        "source": embeds.source.value,
        "raw_face": str(embeds.raw_face).lower(),
        "weight": repr(float(embeds.weight)),
        **label,
    }
    parts = embeds.tensors() | ({} if embeds.keep is None else {"keep": embeds.keep})
    tensors = {
        name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in parts.items()
    }
    return write_numbered(stem, SUFFIX, lambda path: save_file(tensors, path, metadata))


def load_embeds(path: Path) -> ImageEmbeds:
    """Read an embeds file, on the CPU: our own format, or an old one that is a bare tensor.

    Needs no encoder and no face model. Nothing in the file can run code.
    """
    path = Path(path)
    file = open_tensor_file(path)
    bare = list(file.tensors) == [""]
    if not bare and file.metadata.get("format") != FORMAT:
        raise Problem.WRONG_FILE(
            f"{path.name} is not an embeds file: expected one that IPAdapter Save Embeds wrote."
        )
    try:
        if bare:
            return as_image_embeds(file.tensors[""])
        return _from_file(file.metadata, {name: file.tensors[name] for name in file.tensors})
    except (KeyError, ValueError) as error:
        reason = plain_text(error).rstrip(".")
        raise Problem.FILE_BROKEN(
            f"{path.name} is damaged: {reason}. Encode the image again."
        ) from error


def _from_file(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> ImageEmbeds:
    if metadata["version"] not in VERSIONS:
        raise ValueError(
            f"it has format version {metadata['version']}, expected {' or '.join(VERSIONS)}"
        )
    label: dict[str, Any] = {}
    for one in fields(AdapterLabel):
        label[one.name] = metadata[f"adapter_{one.name}"]
    label["num_tokens"] = int(label["num_tokens"])
    return ImageEmbeds(
        features=tensors.get("features"),
        source=EmbedSource(metadata["source"]),
        face=tensors.get("face"),
        raw_face=metadata["raw_face"] == "true",
        weight=float(metadata["weight"]),
        made_for=AdapterLabel(**label),
        keep=tensors.get("keep"),
    )


def _mismatch(embeds: ImageEmbeds, spec: AdapterSpec) -> str:
    """What the adapter takes, if these embeds are something else."""
    wanted: list[str] = []
    if spec.embed_dim:
        wanted.append(f"{spec.embed_source.output.value} of {spec.encoder_name}")
    if spec.face_dim:
        wanted.append("a raw face embedding" if spec.uses_raw_face else "a face embedding")
    features = embeds.features
    fits = (
        embeds.source is spec.embed_source
        and (features is None or features.shape[-1] == spec.embed_dim)
        and (embeds.face is None or embeds.raw_face == spec.uses_raw_face)
    )
    return "" if fits else " and ".join(wanted)


def _check_combinable(embeds: Sequence[Tensor], names: Sequence[str]) -> None:
    if not embeds:
        raise Problem.WRONG_INPUT("Expected embeds to combine, got none. Connect at least one.")
    names = names or _numbered(len(embeds))
    for name, embed in zip(names, embeds, strict=True):
        if embed.shape[1:] != embeds[0].shape[1:]:
            raise Problem.EMBEDS_MISMATCH(
                f"{names[0]} {tuple(embeds[0].shape)} and {name} {tuple(embed.shape)} cannot be "
                "combined: apart from the number of images the sizes must agree. Encode both with "
                "the same adapter and image encoder."
            )


def _check_tensor(name: str, tensor: Tensor, rank: int) -> None:
    if tensor.ndim != rank or 0 in tensor.shape or not tensor.is_floating_point():
        raise Problem.WRONG_INPUT(
            f"Expected {name} with {rank} axes of floating-point numbers, got "
            f"{tuple(tensor.shape)} of {tensor.dtype}."
        )
    if name == "face" and tensor.shape[-1] != FACE_WIDTH:
        raise ValueError(f"Expected a face embedding of {FACE_WIDTH}, got {tensor.shape[-1]}.")
    if not torch.isfinite(tensor).all():
        raise Problem.FILE_BROKEN(
            f"Expected {name} of finite numbers, got NaN or infinite values. The image encoder may "
            "be damaged."
        )


def _check_keep(keep: Tensor, features: Tensor | None) -> None:
    shape = None if features is None else tuple(features.shape[:2])
    if keep.dtype != torch.bool or tuple(keep.shape) != shape or not keep.any(dim=1).all():
        raise ValueError(
            f"Expected kept patches {shape} of true and false with some true for each image, got "
            f"{tuple(keep.shape)} of {keep.dtype}."
        )


def _numbered(count: int) -> list[str]:
    return [f"embed{index}" for index in range(1, count + 1)]


def _must(wanted: bool) -> str:
    return "must have" if wanted else "must not have"
