"""What an adapter is, read from the keys and shapes of its tensors and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from .errors import Problem
from .tensorfile import Shape

Shapes = Mapping[str, Shape]


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


def _widths(*runs: tuple[int, int]) -> tuple[int, ...]:
    return tuple(width for width, count in runs for _ in range(count))


_SD1 = _widths((320, 2), (640, 2), (1280, 5), (640, 3), (320, 3), (1280, 1))
_SDXL = _widths((640, 4), (1280, 50), (640, 6), (1280, 10))
# (width of the text context, widths of the cross-attention layers in id order): input, output,
# middle blocks.
BASES = {
    "SD1.5": (768, _SD1),
    "SD2": (1024, _SD1),
    "SDXL": (2048, _SDXL),
    "SSD-1B": (2048, _widths((640, 4), (1280, 26), (640, 4))),
    "Segmind Vega": (2048, _widths((640, 2), (1280, 10), (640, 3))),
    "KOALA": (2048, _widths((640, 2), (1280, 15), (640, 4))),
}


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter's family and dimensions."""

    family: Family
    num_tokens: int
    """Tokens per image. Full Face has one per patch; the count is that of its encoder's usual image
    size.
    """
    embed_dim: int
    """Width that the image encoder must deliver; 0 where only a face embedding is used."""
    face_dim: int
    """Width of the face embedding; 0 where none is used."""
    token_dim: int
    """Width of the tokens that to_k_ip and to_v_ip take."""
    projected_dim: int
    """Width of the projector's output; differs from token_dim where the model's own text projection
    lies between.
    """
    layer_widths: tuple[int, ...]
    """Output width of to_k_ip per layer, in id order."""
    has_lora: bool

    @property
    def embed_source(self) -> EmbedSource:
        """What the projector takes."""
        return SOURCES[self.family]

    @property
    def needs_hid_proj(self) -> bool:
        """Whether tokens pass through the model's own `encoder_hid_proj` before to_k_ip (Kolors
        FaceID).
        """
        return self.projected_dim != self.token_dim

    @property
    def uses_raw_face(self) -> bool:
        """Whether the face embedding goes in as the recogniser gives it, not normalised to length
        1.
        """
        return self.family is Family.PORTRAIT_UNNORM

    @property
    def base_name(self) -> str:
        """The base model that the adapter's layers fit."""
        if self.family in (Family.KOLORS_PLUS, Family.KOLORS_FACEID_PLUS):
            return "Kolors"
        return base_name(self.token_dim, self.layer_widths)

    @property
    def encoder_name(self) -> str:
        """The image encoder it needs, such as "ViT-H (1280)"; empty where none is needed."""
        return encoder_name(self.embed_source, self.embed_dim) if self.embed_dim else ""

    @property
    def summary(self) -> str:
        """One line for messages."""
        inputs = [self.encoder_name] if self.embed_dim else []
        inputs += ["a face embedding"] if self.face_dim else []
        tokens = f"{self.num_tokens} tokens, needs {' and '.join(inputs)}"
        return f"{self.family.value} for {self.base_name}, {tokens}"

    def with_face_version(self, version: FaceVersion | str) -> AdapterSpec:
        """The spec as the user says it is; no change for AUTO and for families that have one
        version.
        """
        families = {FaceVersion.V1: Family.FACEID_PLUS, FaceVersion.V2: Family.FACEID_PLUS_V2}
        wanted = families.get(FaceVersion(version))
        return replace(self, family=wanted) if wanted and self.family in families.values() else self


def base_name(token_dim: int, layer_widths: tuple[int, ...]) -> str:
    """The base with these cross-attention layers, or a description of an unknown one."""
    for name, known in BASES.items():
        if known == (token_dim, layer_widths):
            return name
    return f"custom UNet ({len(layer_widths)} layers, width {token_dim})"


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


def identify(image_proj: Shapes, ip_adapter: Shapes, name: str) -> AdapterSpec:
    """Family and dimensions of an adapter. `name` is for messages, and the default of FaceID Plus
    v1 or v2.
    """
    token_dim, layer_widths = _layers(ip_adapter, name)
    has_lora = any("_lora." in key for key in ip_adapter)
    family, num_tokens, embed_dim, face_dim, projected_dim = _projector(image_proj, name)
    if family is Family.PORTRAIT and has_lora:
        family = Family.FACEID
    if family is Family.KOLORS_FACEID_PLUS and projected_dim == token_dim:
        family = default_family(name)
    if family is not Family.KOLORS_FACEID_PLUS and projected_dim != token_dim:
        raise Problem.FILE_BROKEN(
            f"{name}: the projector gives tokens of width {projected_dim}, the layers take "
            f"{token_dim}. "
            "The file mixes parts of two adapters; download it again."
        )
    return AdapterSpec(
        family, num_tokens, embed_dim, face_dim, token_dim, projected_dim, layer_widths, has_lora
    )


def default_family(name: str) -> Family:
    """FaceID Plus v1 or v2, as the file name has it."""
    v1 = default_face_version(name) is FaceVersion.V1
    return Family.FACEID_PLUS if v1 else Family.FACEID_PLUS_V2


def _layers(ip_adapter: Shapes, name: str) -> tuple[int, tuple[int, ...]]:
    """(context width, output widths in id order) of the to_k_ip/to_v_ip pairs, checked."""
    ids: dict[int, set[str]] = {}
    for key in ip_adapter:
        number, _, kind = key.partition(".")
        if kind in ("to_k_ip.weight", "to_v_ip.weight") and number.isdigit():
            ids.setdefault(int(number), set()).add(kind)
        elif "to_k_ip" in key or "to_v_ip" in key or "norm" in key:
            raise Problem.UNSUPPORTED(
                f"{name} is an adapter for a transformer model (such as Flux or SD3.5): it has "
                f"'{key}'. "
                "This pack needs an adapter for a UNet model (SD1.5, SD2, SDXL, Kolors)."
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
            "one. "
            "The file is damaged; download it again."
        )
    return token_dims.pop(), widths


def _refuse_ids(ids: list[int], name: str) -> None:
    if ids == list(range(len(ids))):
        raise Problem.UNSUPPORTED(
            f"{name} is an adapter for a transformer model (such as Flux or SD3.5): its {len(ids)} "
            "layers are numbered "
            "0, 1, 2 and so on. This pack needs an adapter for a UNet model (SD1.5, SD2, SDXL, "
            "Kolors)."
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
            "matrices. "
            "The file is damaged; download it again."
        )
    return key[0]


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
