"""Adapter families: what tells each from its keys and shapes, its projector, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from torch import nn

from ..errors import Problem
from ..files.tensors import Shapes
from .projectors import (
    FaceIDPlusProjModel,
    FaceIDProjModel,
    ImageProjModel,
    MLPProjModel,
    Resampler,
)


class Family(str, Enum):
    """Adapter families; a family fixes the projector and what is fed to it."""

    STANDARD = "standard"
    PLUS = "Plus"
    FULL_FACE = "Full Face"
    FACEID = "FaceID"
    FACEID_PLUS = "FaceID Plus"
    FACEID_PLUS_V2 = "FaceID Plus v2"
    PORTRAIT = "FaceID Portrait"
    PORTRAIT_UNNORM = "FaceID Portrait unnorm"
    KOLORS_PLUS = "Kolors Plus"
    KOLORS_FACEID_PLUS = "Kolors FaceID Plus"


class EmbedSource(str, Enum):
    """What the projector takes."""

    POOLED = "image_embeds"
    HIDDEN = "penultimate_hidden_states"
    FACE = "face embedding"
    FACE_AND_HIDDEN = "face embedding and penultimate_hidden_states"


class FaceVersion(str, Enum):
    """FaceID Plus v1 and v2 have the same shapes, so the user may have to say which one a file
    is.
    """

    AUTO = "auto"
    V1 = "v1"
    V2 = "v2"


SOURCES = {
    Family.STANDARD: EmbedSource.POOLED,
    Family.PLUS: EmbedSource.HIDDEN,
    Family.FULL_FACE: EmbedSource.HIDDEN,
    Family.FACEID: EmbedSource.FACE,
    Family.FACEID_PLUS: EmbedSource.FACE_AND_HIDDEN,
    Family.FACEID_PLUS_V2: EmbedSource.FACE_AND_HIDDEN,
    Family.PORTRAIT: EmbedSource.FACE,
    Family.PORTRAIT_UNNORM: EmbedSource.FACE,
    Family.KOLORS_PLUS: EmbedSource.HIDDEN,
    Family.KOLORS_FACEID_PLUS: EmbedSource.FACE_AND_HIDDEN,
}
FACE_WIDTH = 512  # ArcFace embeddings
MAX_TOKENS = 4096


@dataclass(frozen=True)
class EncoderKind:
    """An image encoder that adapters were trained with."""

    name: str
    hidden: int
    projected: int
    image_size: int
    patch: int = 14

    @property
    def patches(self) -> int:
        """Tokens of the hidden states, the class token included."""
        return (self.image_size // self.patch) ** 2 + 1


ENCODERS = (
    EncoderKind("ViT-H", 1280, 1024, 224),
    EncoderKind("ViT-bigG", 1664, 1280, 224),
    EncoderKind("ViT-L/14 at 336 px", 1024, 768, 336),
    EncoderKind("ViT-L/14", 1024, 768, 224),
)


def encoder_name(source: EmbedSource, width: int) -> str:
    """Encoder and width for messages, such as "ViT-H (1280)"."""
    pooled = source is EmbedSource.POOLED
    for kind in ENCODERS:
        if width == (kind.projected if pooled else kind.hidden):
            return f"{kind.name} ({width})"
    output = EmbedSource.POOLED if pooled else EmbedSource.HIDDEN
    return f"an image encoder with {output.value} of width {width}"


def default_face_version(name: str) -> FaceVersion:
    """v1 or v2 of a FaceID Plus file, going by its name; v2 where the name says nothing."""
    letters = "".join(filter(str.isalnum, name.lower()))
    return FaceVersion.V1 if "faceidplus" in letters and "plusv2" not in letters else FaceVersion.V2


def default_family(name: str) -> Family:
    """FaceID Plus v1 or v2, as the file name has it."""
    v1 = default_face_version(name) is FaceVersion.V1
    return Family.FACEID_PLUS if v1 else Family.FACEID_PLUS_V2


# family, tokens, width of the encoder, width of the face embedding, width of the output
_Projector = tuple[Family, int, int, int, int]


def _projector(shapes: Shapes, name: str) -> _Projector:
    for telling_key, read in _READERS:
        if telling_key in shapes:
            try:
                found = read(shapes)
            except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
                raise Problem.FILE_BROKEN(
                    f"{name}: its projector has '{telling_key}' {shapes[telling_key]} but the rest "
                    "does not fit "
                    f"({type(error).__name__}: {error}). The file is damaged or incomplete; "
                    "download it again."
                ) from error
            if not (0 < found[1] <= MAX_TOKENS and 0 < found[4] <= 1 << 16):
                raise Problem.FILE_BROKEN(
                    f"{name}: its projector would give {found[1]} tokens of width {found[4]}; the "
                    "file is damaged. "
                    "Download it again."
                )
            return found
    seen = ", ".join(sorted(shapes)[:4])
    raise Problem.UNSUPPORTED(
        f"{name} is an adapter of an unknown family: its projector has {seen}. Expected one of "
        f"{', '.join(key for key, _ in _READERS)}."
    )


def _read_standard(shapes: Shapes) -> _Projector:
    rows, embed_dim = shapes["proj.weight"]
    (token_dim,) = shapes["norm.weight"]
    if rows % token_dim:
        raise ValueError(f"{rows} rows are not a whole number of tokens of width {token_dim}")
    return Family.STANDARD, rows // token_dim, embed_dim, 0, token_dim


def _read_full_face(shapes: Shapes) -> _Projector:
    (token_dim,) = shapes["proj.3.weight"]
    embed_dim = shapes["proj.0.weight"][1]
    patches = {kind.hidden: kind.patches for kind in ENCODERS}
    return Family.FULL_FACE, patches.get(embed_dim, 257), embed_dim, 0, token_dim


def _read_faceid_plus(shapes: Shapes) -> _Projector:
    (latent_dim,) = shapes["norm.weight"]
    num_tokens = shapes["proj.2.weight"][0] // latent_dim
    embed_dim = shapes["perceiver_resampler.proj_in.weight"][1]
    output_dim = shapes["perceiver_resampler.proj_out.weight"][0]
    # Which of the FaceID Plus families it is depends on the layers: identify() settles it.
    return Family.KOLORS_FACEID_PLUS, num_tokens, embed_dim, shapes["proj.0.weight"][1], output_dim


def _read_resampler(shapes: Shapes) -> _Projector:
    _, num_tokens, latent_dim = shapes["latents"]
    embed_dim, token_dim = shapes["proj_in.weight"][1], shapes["proj_out.weight"][0]
    if embed_dim == FACE_WIDTH:
        return Family.PORTRAIT_UNNORM, num_tokens, 0, embed_dim, token_dim
    kolors = latent_dim == token_dim == 2048 and embed_dim == 1024
    return Family.KOLORS_PLUS if kolors else Family.PLUS, num_tokens, embed_dim, 0, token_dim


def _read_faceid(shapes: Shapes) -> _Projector:
    (token_dim,) = shapes["norm.weight"]
    num_tokens = shapes["proj.2.weight"][0] // token_dim
    family = Family.FACEID if num_tokens == 4 else Family.PORTRAIT
    return family, num_tokens, 0, shapes["proj.0.weight"][1], token_dim


# The first key that a projector has tells its family.
_READERS = (
    ("proj.weight", _read_standard),
    ("proj.3.weight", _read_full_face),
    ("perceiver_resampler.proj_in.weight", _read_faceid_plus),
    ("latents", _read_resampler),
    ("proj.2.weight", _read_faceid),
)


def _mlp(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    inner_dim, embed_dim = shapes["proj.0.weight"]
    return MLPProjModel(embed_dim, inner_dim, shapes["proj.3.weight"][0])


def _linear(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    rows, embed_dim = shapes["proj.weight"]
    (token_dim,) = shapes["norm.weight"]
    return ImageProjModel(embed_dim, rows // token_dim, token_dim)


BUILDERS: dict[Family, Callable[[Mapping[str, tuple[int, ...]]], nn.Module]] = {
    Family.STANDARD: _linear,
    Family.PLUS: Resampler,
    Family.FULL_FACE: _mlp,
    Family.FACEID: FaceIDProjModel,
    Family.FACEID_PLUS: FaceIDPlusProjModel,
    Family.FACEID_PLUS_V2: FaceIDPlusProjModel,
    Family.PORTRAIT: FaceIDProjModel,
    Family.PORTRAIT_UNNORM: Resampler,
    Family.KOLORS_PLUS: Resampler,
    Family.KOLORS_FACEID_PLUS: FaceIDPlusProjModel,
}
