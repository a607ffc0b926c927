"""Adapter families, one row each: what tells it, its projector, what it reads and how.

To add a family, add a row to `Family` (and to library/presets.py, if files of it are published).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import nn

from ..bases.flux import FLUX
from ..bases.sd3 import LARGE
from ..files.tensors import Shapes
from .projectors import (
    FaceIDPlusProjModel,
    FaceIDProjModel,
    ImageProjModel,
    MLPProjModel,
    Resampler,
)
from .time_resampler import TimeResampler
from .vision import ENCODERS, EmbedSource
from .wiring import Wiring

FACE_WIDTH = 512  # ArcFace embeddings
MAX_TOKENS = 4096


class FaceVersion(str, Enum):
    """FaceID Plus v1 and v2 have the same shapes: the user may have to say which a file is."""

    AUTO = "auto"
    V1 = "v1"
    V2 = "v2"


def default_face_version(name: str) -> FaceVersion:
    """v1 or v2 of a FaceID Plus file, going by its name; v2 where the name says nothing."""
    letters = "".join(filter(str.isalnum, name.lower()))
    return FaceVersion.V1 if "faceidplus" in letters and "plusv2" not in letters else FaceVersion.V2


@dataclass(frozen=True)
class Dims:
    """A projector's dimensions: tokens per image, widths of the encoder's output and of the face
    embedding (0: not used), width of the tokens it gives."""

    num_tokens: int
    embed_dim: int
    face_dim: int
    projected_dim: int


@dataclass(frozen=True)
class Evidence:
    """What tells families with equal projector keys apart.

    token_dim: width that the layers take. name: the file's, the last resort.
    """

    projector: Shapes
    dims: Dims
    token_dim: int
    has_lora: bool
    name: str

    @property
    def joins(self) -> bool:
        """Whether the projector's tokens go into the layers as they are."""
        return self.dims.projected_dim == self.token_dim


@dataclass(frozen=True)
class Training:
    """How a new projector of a family begins: tokens of the official files, and the shapes for
    (tokens, embed_dim, token_dim, inner width, depth)."""

    tokens: int
    shapes: Callable[[int, int, int, int, int], Shapes]


class Nothing(str, Enum):
    """What the negative is where no picture is to be moved away from."""

    ZEROS = "zeros in place of features"
    GREY = "a picture of the encoder's mean grey"
    BLACK = "a black picture"
    SAME = "the picture itself, so that guidance leaves it alone"


@dataclass(frozen=True)
class Row:
    """A family.

    telling_key: the projector key that, with the wiring of the layers, tells it. dims: reads the
    dimensions. projector: builds the module from its shapes. reads: what the projector takes.
    fits: decides between families that share a telling key. base: the base's name where the layers
    do not tell. encoder_size: picture size of its encoder where the width does not tell.
    keeps_patches: its projector can leave out patches that a mask excludes. adds_face: the face's
    own tokens are added, by the node's weight_faceidv2. raw_face: takes the recogniser's embedding
    unnormalised. through_text: its tokens pass through the base's own text projection. version: of
    FaceID Plus. training: None where pictures alone do not train it. wiring: of its layers.
    nothing: its usual negative.
    """

    telling_key: str
    dims: Callable[[Shapes], Dims]
    projector: Callable[[Shapes], nn.Module]
    reads: EmbedSource
    fits: Callable[[Evidence], bool] = lambda _evidence: True
    base: str = ""
    encoder_size: int = 0
    keeps_patches: bool = False
    adds_face: bool = False
    raw_face: bool = False
    through_text: bool = False
    version: FaceVersion | None = None
    training: Training | None = None
    wiring: Wiring = Wiring.UNET
    nothing: Nothing = Nothing.ZEROS


def _standard(shapes: Shapes) -> Dims:
    rows, embed_dim = shapes["proj.weight"]
    (token_dim,) = shapes["norm.weight"]
    if rows % token_dim:
        raise ValueError(f"{rows} rows are not a whole number of tokens of width {token_dim}")
    return Dims(rows // token_dim, embed_dim, 0, token_dim)


def _full_face(shapes: Shapes) -> Dims:
    (token_dim,) = shapes["proj.3.weight"]
    embed_dim = shapes["proj.0.weight"][1]
    patches = {kind.hidden: kind.patches for kind in ENCODERS}
    return Dims(patches.get(embed_dim, 257), embed_dim, 0, token_dim)


def _faceid_plus(shapes: Shapes) -> Dims:
    num_tokens = shapes["proj.2.weight"][0] // shapes["norm.weight"][0]
    embed_dim = shapes["perceiver_resampler.proj_in.weight"][1]
    output_dim = shapes["perceiver_resampler.proj_out.weight"][0]
    return Dims(num_tokens, embed_dim, shapes["proj.0.weight"][1], output_dim)


def _resampler(shapes: Shapes) -> Dims:
    _, num_tokens, _ = shapes["latents"]
    return Dims(num_tokens, shapes["proj_in.weight"][1], 0, shapes["proj_out.weight"][0])


def _resampled_face(shapes: Shapes) -> Dims:
    dims = _resampler(shapes)
    return Dims(dims.num_tokens, 0, dims.embed_dim, dims.projected_dim)


def _faceid(shapes: Shapes) -> Dims:
    (token_dim,) = shapes["norm.weight"]
    num_tokens = shapes["proj.2.weight"][0] // token_dim
    return Dims(num_tokens, 0, shapes["proj.0.weight"][1], token_dim)


def _pooled_mlp(shapes: Shapes) -> Dims:
    dims = _faceid(shapes)
    return Dims(dims.num_tokens, dims.face_dim, 0, dims.projected_dim)


def _is_kolors(given: Evidence) -> bool:
    dims, latent_dim = given.dims, given.projector["latents"][2]
    return latent_dim == dims.projected_dim == 2048 and dims.embed_dim == 1024


_FACE_PLUS = "perceiver_resampler.proj_in.weight"
_POOLED, _HIDDEN, _FACE = EmbedSource.POOLED, EmbedSource.HIDDEN, EmbedSource.FACE
_BOTH = EmbedSource.FACE_AND_HIDDEN


class Family(str, Enum):
    """Adapter families by the name that messages and files give them. A file is of the first
    family here whose wiring and telling key it has and which fits."""

    row: Row

    def __new__(cls, label: str, row: Row) -> Family:
        """A member is its label, and carries its row."""
        member = str.__new__(cls, label)
        member._value_ = label
        member.row = row
        return member

    STANDARD = (
        "standard",
        Row(
            "proj.weight",
            _standard,
            ImageProjModel.from_shapes,
            _POOLED,
            training=Training(4, ImageProjModel.shapes),
        ),
    )
    FULL_FACE = (
        "Full Face",
        Row(
            "proj.3.weight",
            _full_face,
            MLPProjModel.from_shapes,
            _HIDDEN,
            nothing=Nothing.GREY,
        ),
    )
    FACEID_PLUS = (
        "FaceID Plus",
        Row(
            _FACE_PLUS,
            _faceid_plus,
            FaceIDPlusProjModel,
            _BOTH,
            fits=lambda e: e.joins and default_face_version(e.name) is FaceVersion.V1,
            version=FaceVersion.V1,
            nothing=Nothing.GREY,
        ),
    )
    FACEID_PLUS_V2 = (
        "FaceID Plus v2",
        Row(
            _FACE_PLUS,
            _faceid_plus,
            FaceIDPlusProjModel,
            _BOTH,
            fits=lambda e: e.joins,
            adds_face=True,
            version=FaceVersion.V2,
            nothing=Nothing.GREY,
        ),
    )
    KOLORS_FACEID_PLUS = (
        "Kolors FaceID Plus",
        Row(
            _FACE_PLUS,
            _faceid_plus,
            FaceIDPlusProjModel,
            _BOTH,
            base="Kolors",
            encoder_size=336,
            adds_face=True,
            through_text=True,
            nothing=Nothing.GREY,
        ),
    )
    PORTRAIT_UNNORM = (
        "FaceID Portrait unnorm",
        Row(
            "latents",
            _resampled_face,
            Resampler,
            _FACE,
            fits=lambda e: e.dims.face_dim == FACE_WIDTH,
            raw_face=True,
        ),
    )
    KOLORS_PLUS = (
        "Kolors Plus",
        Row(
            "latents",
            _resampler,
            Resampler,
            _HIDDEN,
            fits=_is_kolors,
            base="Kolors",
            encoder_size=336,
            keeps_patches=True,
            nothing=Nothing.GREY,
        ),
    )
    PLUS = (
        "Plus",
        Row(
            "latents",
            _resampler,
            Resampler,
            _HIDDEN,
            keeps_patches=True,
            training=Training(16, Resampler.shapes),
            nothing=Nothing.GREY,
        ),
    )
    FACEID = (
        "FaceID",
        Row(
            "proj.2.weight",
            _faceid,
            FaceIDProjModel,
            _FACE,
            fits=lambda e: e.dims.num_tokens == 4 or e.has_lora,
        ),
    )
    PORTRAIT = (
        "FaceID Portrait",
        Row("proj.2.weight", _faceid, FaceIDProjModel, _FACE),
    )
    FLUX_XLABS = (
        "XLabs",
        Row(
            "proj.weight",
            _standard,
            ImageProjModel.from_shapes,
            _POOLED,
            base=FLUX,
            encoder_size=224,
            training=Training(4, ImageProjModel.shapes),
            wiring=Wiring.XLABS,
            nothing=Nothing.BLACK,
        ),
    )
    FLUX_INSTANTX = (
        "InstantX",
        Row(
            "proj.2.weight",
            _pooled_mlp,
            FaceIDProjModel,
            _POOLED,
            base=FLUX,
            wiring=Wiring.INSTANTX,
            nothing=Nothing.SAME,
        ),
    )
    SD3_INSTANTX = (
        "InstantX timed",
        Row(
            "latents",
            _resampler,
            TimeResampler,
            _HIDDEN,
            base=LARGE,
            wiring=Wiring.JOINED,
        ),
    )
    TRANSFORMER = (
        "standard for transformers",
        Row(
            "proj.weight",
            _standard,
            ImageProjModel.from_shapes,
            _POOLED,
            training=Training(4, ImageProjModel.shapes),
            wiring=Wiring.NORMED,
        ),
    )
    TRANSFORMER_PLUS = (
        "Plus for transformers",
        Row(
            "latents",
            _resampler,
            Resampler,
            _HIDDEN,
            keeps_patches=True,
            training=Training(16, Resampler.shapes),
            wiring=Wiring.NORMED,
            nothing=Nothing.GREY,
        ),
    )

    def wired(self, wiring: Wiring) -> Family | None:
        """The trainable family with this one's projector whose layers are wired so; None if no
        base is known to have one."""
        own = self.row.training
        related = (one for one in Family if own and one.row.wiring is wiring and one.row.training)
        return next((one for one in related if one.row.reads is self.row.reads), None)


# What the node offers: how each is wired, the base says.
TRAINABLE = tuple(
    family for family in Family if family.row.training and family.row.wiring is Wiring.UNET
)
