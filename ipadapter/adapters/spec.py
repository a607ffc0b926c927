"""What an adapter is, read from the keys and shapes of its tensors and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..bases.unet import base_name
from ..errors import Problem
from ..files.tensors import Shapes
from .families import (
    SOURCES,
    EmbedSource,
    FaceVersion,
    Family,
    _projector,
    default_family,
    encoder_name,
)
from .key_values import _layers


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
