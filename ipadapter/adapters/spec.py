"""What an adapter is, read from the keys and shapes of its tensors and nothing else."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from ..bases.layout import Layout
from ..bases.transformers import transformer_name
from ..bases.unet import base_name
from ..errors import Problem
from ..files.tensors import Shapes
from .families import MAX_TOKENS, Dims, Evidence, FaceVersion, Family
from .key_values import read_layers
from .vision import EmbedSource, encoder_name
from .wiring import Wiring


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter's family and dimensions."""

    family: Family
    num_tokens: int
    """Tokens per image.

    Full Face has one per patch; the count is that of its encoder's usual image size.
    """
    embed_dim: int
    """Width that the image encoder must deliver; 0 where only a face embedding is used."""
    face_dim: int
    """Width of the face embedding; 0 where none is used."""
    token_dim: int
    """Width of the tokens that to_k_ip and to_v_ip take."""
    projected_dim: int
    """Width of the projector's output; differs from token_dim where the model's own
    text projection lies between."""
    layer_widths: tuple[int, ...]
    """Output width of to_k_ip per layer, in id order."""
    has_lora: bool

    @property
    def embed_source(self) -> EmbedSource:
        """What the projector takes."""
        return self.family.row.reads

    @property
    def needs_hid_proj(self) -> bool:
        """Whether tokens pass through the model's own `encoder_hid_proj`
        before to_k_ip (Kolors FaceID)."""
        return self.projected_dim != self.token_dim

    @property
    def uses_raw_face(self) -> bool:
        """Whether the face embedding goes in as the recogniser gives it, not
        normalised to length 1."""
        return self.family.row.raw_face

    @property
    def base_name(self) -> str:
        """The base model that the adapter's layers fit."""
        row = self.family.row
        if row.wiring is Wiring.NORMED:
            return transformer_name(self.layer_widths)
        return row.base or base_name(self.token_dim, self.layer_widths)

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

    def layers_in(self, layout: Layout) -> Layout:
        """The layers of a base in the blocks that the adapter's layers are made for."""
        return layout.only(self.family.row.wiring.value.blocks)

    def fits(self, layout: Layout) -> bool:
        """Whether the adapter is made for a base with this layout."""
        return self.layers_in(layout).fits(self.layer_widths, self.token_dim)

    def with_face_version(self, version: FaceVersion | str) -> AdapterSpec:
        """The spec as the user says it is; no change for AUTO and for families
        that have one version."""
        versions = {family.row.version: family for family in Family if family.row.version}
        wanted = versions.get(FaceVersion(version))
        return replace(self, family=wanted) if wanted and self.family.row.version else self


def identify(image_proj: Shapes, ip_adapter: Shapes, name: str) -> AdapterSpec:
    """Family and dimensions of an adapter.

    `name` is for messages, and the default of FaceID Plus v1 or v2.
    """
    layers = read_layers(ip_adapter, name)
    has_lora = any("_lora." in key for key in ip_adapter)
    wired = [family for family in Family if family.row.wiring is layers.wiring]
    keys = tuple(dict.fromkeys(family.row.telling_key for family in wired))
    key = next((key for key in keys if key in image_proj), None)
    if key is None:
        seen = ", ".join(sorted(image_proj)[:4])
        raise Problem.UNSUPPORTED(
            f"{name} is an adapter of an unknown family: its projector has {seen}. Expected one of "
            f"{', '.join(keys)}."
        )
    related = [family for family in wired if family.row.telling_key == key]
    judged = [(family, _dims(family, image_proj, name)) for family in related]
    family, dims = next(
        (one, dims)
        for one, dims in judged
        if one.row.fits(Evidence(image_proj, dims, layers.token_dim, has_lora, name))
    )
    if not family.row.through_text and dims.projected_dim != layers.token_dim:
        raise Problem.FILE_BROKEN(
            f"{name}: the projector gives tokens of width {dims.projected_dim}, the layers take "
            f"{layers.token_dim}. The file mixes parts of two adapters; download it again."
        )
    tokens, embed, face, projected = astuple(dims)
    return AdapterSpec(
        family, tokens, embed, face, layers.token_dim, projected, layers.widths, has_lora
    )


def _dims(family: Family, shapes: Shapes, name: str) -> Dims:
    """The projector's dimensions, checked."""
    key = family.row.telling_key
    try:
        dims = family.row.dims(shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise Problem.FILE_BROKEN(
            f"{name}: its projector has '{key}' {shapes[key]} but the rest does not fit "
            f"({type(error).__name__}: {error}). The file is damaged or incomplete; download it "
            "again."
        ) from error
    if not (0 < dims.num_tokens <= MAX_TOKENS and 0 < dims.projected_dim <= 1 << 16):
        raise Problem.FILE_BROKEN(
            f"{name}: its projector would give {dims.num_tokens} tokens of width "
            f"{dims.projected_dim}; the file is damaged. Download it again."
        )
    return dims
