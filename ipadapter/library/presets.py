"""The unified loaders' presets as data: what each needs on each base, and where
the file is found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..adapters.families import Family
from ..adapters.spec import AdapterSpec
from ..adapters.vision import SIGLIP, VIT_BIGG, VIT_H, VIT_L, VIT_L_336, EncoderKind
from ..bases.flux import CHROMA, FLUX
from ..bases.sd3 import LARGE
from ..errors import Problem


class Variant(str, Enum):
    """Files of one family and shape that were trained for different things; only names differ."""

    ANY = "any"
    PLAIN = "the general variant"
    LIGHT = "the light variant"
    FACE = "the face variant"
    COMPOSITION = "the composition variant"
    V1 = "version 1"
    V2 = "version 2"


@dataclass(frozen=True)
class Requirement:
    """The adapter that a preset means on a base."""

    family: Family
    variant: Variant = Variant.ANY
    embed_dim: int = 0
    """Width of the image encoder, where adapters of the family exist for several; 0: any."""
    file: str = ""
    """The official file; empty where none was published for the base."""
    lora: str = ""
    """The LoRA that belongs to it."""
    tokens: int = 0
    """Tokens per picture, where files of the family differ in it; 0: any."""
    other: Requirement | None = None
    """What is taken where there is no such file."""

    @property
    def summary(self) -> str:
        """What is needed, for messages."""
        special = self.variant not in (Variant.ANY, Variant.PLAIN)
        own = self.family.value + (f", {self.variant.value}" if special else "")
        return f"{own} or {self.other.summary}" if self.other else own

    @property
    def files(self) -> tuple[str, ...]:
        """The official files, the first one first."""
        own = (self.file,) if self.file else ()
        return own + (self.other.files if self.other else ())


@dataclass(frozen=True)
class EncoderSource:
    """A published image encoder, the name that users give it, and what its names have in them."""

    kind: EncoderKind
    file: str
    hints: tuple[str, ...]


LIGHT = "LIGHT - SD1.5 only (low strength)"
STANDARD = "STANDARD (medium strength)"
VIT_G = "VIT-G (medium strength)"
PLUS = "PLUS (high strength)"
PLUS_FACE = "PLUS FACE (portraits)"
FULL_FACE = "FULL FACE - SD1.5 only (portraits stronger)"
FACEID = "FACEID"
FACEID_PLUS = "FACEID PLUS - SD1.5 only"
FACEID_PLUS_V2 = "FACEID PLUS V2"
FACEID_PORTRAIT = "FACEID PORTRAIT (style transfer)"
FACEID_UNNORM = "FACEID PORTRAIT UNNORM - SDXL only (strong)"
COMPOSITION = "Composition"
KOLORS = "Kolors"

UNIFIED_PRESETS = (LIGHT, STANDARD, VIT_G, PLUS, PLUS_FACE, FULL_FACE)
FACEID_PRESETS = (FACEID, FACEID_PLUS, FACEID_PLUS_V2, FACEID_PORTRAIT, FACEID_UNNORM)
COMMUNITY_PRESETS = (COMPOSITION, KOLORS)

_PLAIN, _FACE = Variant.PLAIN, Variant.FACE
_KOLORS = Requirement(Family.KOLORS_PLUS, file="Kolors-IP-Adapter-Plus.bin")


def _faceid(family: Family, variant: Variant, stem: str, lora: bool = True) -> Requirement:
    lora_file = f"{stem}_lora.safetensors" if lora else ""
    return Requirement(family, variant, file=f"{stem}.bin", lora=lora_file)


# What a preset means on any base, official file or not.
_MEANINGS = {
    LIGHT: Requirement(Family.STANDARD, Variant.LIGHT),
    STANDARD: Requirement(Family.STANDARD, _PLAIN),
    VIT_G: Requirement(Family.STANDARD, _PLAIN, 1280),
    PLUS: Requirement(Family.PLUS, _PLAIN),
    PLUS_FACE: Requirement(Family.PLUS, _FACE),
    FULL_FACE: Requirement(Family.FULL_FACE),
    FACEID: Requirement(Family.FACEID),
    FACEID_PLUS: Requirement(Family.FACEID_PLUS, Variant.V1),
    FACEID_PLUS_V2: Requirement(Family.FACEID_PLUS_V2, Variant.V2),
    FACEID_PORTRAIT: Requirement(Family.PORTRAIT),
    FACEID_UNNORM: Requirement(Family.PORTRAIT_UNNORM),
    COMPOSITION: Requirement(Family.PLUS, Variant.COMPOSITION),
    KOLORS: _KOLORS,
}

_FLUX = {
    STANDARD: Requirement(
        Family.FLUX_XLABS, Variant.ANY, 768, "flux-ip-adapter.safetensors", tokens=4
    ),
    PLUS: Requirement(
        Family.FLUX_XLABS,
        Variant.ANY,
        768,
        "flux-ip-adapter-v2.safetensors",
        tokens=16,
        other=Requirement(Family.FLUX_INSTANTX, Variant.ANY, 1152, "flux.1-dev-ip-adapter.bin"),
    ),
}

OFFICIAL: dict[str, dict[str, Requirement]] = {
    "SD1.5": {
        LIGHT: Requirement(Family.STANDARD, Variant.LIGHT, 1024, "ip-adapter_sd15_light_v11.bin"),
        STANDARD: Requirement(Family.STANDARD, _PLAIN, 1024, "ip-adapter_sd15.safetensors"),
        VIT_G: Requirement(Family.STANDARD, _PLAIN, 1280, "ip-adapter_sd15_vit-G.safetensors"),
        PLUS: Requirement(Family.PLUS, _PLAIN, 1280, "ip-adapter-plus_sd15.safetensors"),
        PLUS_FACE: Requirement(Family.PLUS, _FACE, 1280, "ip-adapter-plus-face_sd15.safetensors"),
        FULL_FACE: Requirement(Family.FULL_FACE, file="ip-adapter-full-face_sd15.safetensors"),
        FACEID: _faceid(Family.FACEID, Variant.ANY, "ip-adapter-faceid_sd15"),
        FACEID_PLUS: _faceid(Family.FACEID_PLUS, Variant.V1, "ip-adapter-faceid-plus_sd15"),
        FACEID_PLUS_V2: _faceid(Family.FACEID_PLUS_V2, Variant.V2, "ip-adapter-faceid-plusv2_sd15"),
        FACEID_PORTRAIT: _faceid(
            Family.PORTRAIT, Variant.ANY, "ip-adapter-faceid-portrait-v11_sd15", lora=False
        ),
        COMPOSITION: Requirement(
            Family.PLUS, Variant.COMPOSITION, 1280, "ip_plus_composition_sd15.safetensors"
        ),
    },
    "SDXL": {
        STANDARD: Requirement(Family.STANDARD, _PLAIN, 1024, "ip-adapter_sdxl_vit-h.safetensors"),
        VIT_G: Requirement(Family.STANDARD, _PLAIN, 1280, "ip-adapter_sdxl.safetensors"),
        PLUS: Requirement(Family.PLUS, _PLAIN, 1280, "ip-adapter-plus_sdxl_vit-h.safetensors"),
        PLUS_FACE: Requirement(
            Family.PLUS, _FACE, 1280, "ip-adapter-plus-face_sdxl_vit-h.safetensors"
        ),
        FACEID: _faceid(Family.FACEID, Variant.ANY, "ip-adapter-faceid_sdxl"),
        FACEID_PLUS_V2: _faceid(Family.FACEID_PLUS_V2, Variant.V2, "ip-adapter-faceid-plusv2_sdxl"),
        FACEID_PORTRAIT: _faceid(
            Family.PORTRAIT, Variant.ANY, "ip-adapter-faceid-portrait_sdxl", lora=False
        ),
        FACEID_UNNORM: _faceid(
            Family.PORTRAIT_UNNORM,
            Variant.ANY,
            "ip-adapter-faceid-portrait_sdxl_unnorm",
            lora=False,
        ),
        COMPOSITION: Requirement(
            Family.PLUS, Variant.COMPOSITION, 1280, "ip_plus_composition_sdxl.safetensors"
        ),
        # Kolors' UNet has the layers of SDXL's, and the host may call it so.
        KOLORS: _KOLORS,
    },
    "Kolors": {KOLORS: _KOLORS},
    FLUX: _FLUX,
    CHROMA: _FLUX,
    LARGE: {
        PLUS: Requirement(Family.SD3_INSTANTX, Variant.ANY, 1152, "sd3.5-large-ip-adapter.bin")
    },
}

ENCODER_SOURCES = (
    EncoderSource(
        VIT_H,
        "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        ("vith", "h14", "b79k", "ipadapter", "imageencoder", "sd15"),
    ),
    EncoderSource(
        VIT_BIGG,
        "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
        ("bigg", "b160k", "ipadapter", "imageencoder", "sdxl"),
    ),
    EncoderSource(
        VIT_L_336,
        "clip-vit-large-patch14-336.bin",
        ("336", "kolors", "imageencoder"),
    ),
    EncoderSource(SIGLIP, "sigclip_vision_patch14_384.safetensors", ("384", "siglip", "sigclip")),
    EncoderSource(VIT_L, "clip-vit-large-patch14.safetensors", ("vitl", "large", "patch14")),
)


def requirement(preset: str, base: str) -> Requirement:
    """What a preset means on a base; ValueError if there is no such combination."""
    if preset not in _MEANINGS:
        raise Problem.BAD_VALUE(
            f'There is no preset "{preset}". Choose one of: {", ".join(_MEANINGS)}.'
        )
    if base not in OFFICIAL:
        return _MEANINGS[preset]
    if preset not in OFFICIAL[base]:
        bases = " and ".join(name for name, presets in OFFICIAL.items() if preset in presets)
        raise Problem.WRONG_BASE(
            f'Preset "{preset}" exists for {bases}, the model is {base}. '
            f"Presets for {base}: {', '.join(OFFICIAL[base])}."
        )
    return OFFICIAL[base][preset]


def letters(name: str) -> str:
    """A file name without folder, case, spaces and punctuation."""
    file = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(filter(str.isalnum, file.lower()))


def variant_of(spec: AdapterSpec, name: str) -> Variant | None:
    """The variant that a file name tells for an adapter of this family; None
    if it tells nothing."""
    text = letters(name)
    if spec.family not in _NAMED:
        return Variant.ANY
    return next((variant for word, variant in _NAMED[spec.family] if word in text), None)


# What a part of a file's name says of the families whose variants have equal shapes; the first
# that is found.
_VERSIONS = (("plusv2", Variant.V2), ("faceidplus", Variant.V1))
_NAMED: dict[Family, tuple[tuple[str, Variant], ...]] = {
    Family.STANDARD: (("light", Variant.LIGHT), ("ipadapter", Variant.PLAIN)),
    Family.PLUS: (
        ("composition", Variant.COMPOSITION),
        ("face", Variant.FACE),
        ("plus", Variant.PLAIN),
    ),
    Family.FACEID_PLUS: _VERSIONS,
    Family.FACEID_PLUS_V2: _VERSIONS,
}
