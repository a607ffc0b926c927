"""What kind of model a set of tensors is, told from key names alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """Kinds of model files that end up in the wrong folder."""

    ADAPTER = "an IP-Adapter"
    PARTIAL_ADAPTER = "a part of an IP-Adapter"
    FLUX_ADAPTER = "an IP-Adapter for Flux"
    PULID = "a PuLID model"
    LORA = "a LoRA"
    CONTROLNET = "a ControlNet"
    T2I_ADAPTER = "a T2I-Adapter"
    CHECKPOINT = "a full checkpoint"
    UNET = "a diffusion model (UNet)"
    DIT = "a diffusion model (transformer)"
    CLIP_VISION = "a CLIP vision encoder"
    OPENCLIP = "a CLIP model in OpenCLIP layout"
    DINO = "a vision encoder of another kind (DINO or timm)"
    TEXT_ENCODER = "a text encoder"
    VAE = "a VAE"
    EMBEDDING = "a textual inversion embedding"
    UNKNOWN = "a model of unknown kind"


@dataclass(frozen=True)
class Sign:
    """One row of the table: any key that has `start`, `part` and `end` says `kind`."""

    kind: Kind
    start: str = ""
    part: str = ""
    end: str = ""

    def matches(self, key: str) -> bool:
        return key.startswith(self.start) and self.part in key and key.endswith(self.end)


PROJECTOR_PREFIXES = ("image_proj.", "image_proj_model.")
LAYER_PREFIXES = ("ip_adapter.", "adapter_modules.")

HOME_FOLDERS = {
    Kind.LORA: "models/loras",
    Kind.CONTROLNET: "models/controlnet",
    Kind.T2I_ADAPTER: "models/controlnet",
    Kind.CHECKPOINT: "models/checkpoints",
    Kind.UNET: "models/diffusion_models",
    Kind.DIT: "models/diffusion_models",
    Kind.CLIP_VISION: "models/clip_vision",
    Kind.OPENCLIP: "models/clip_vision",
    Kind.TEXT_ENCODER: "models/text_encoders",
    Kind.VAE: "models/vae",
    Kind.EMBEDDING: "models/embeddings",
    Kind.ADAPTER: "models/ipadapter",
}

# The first row that any key matches decides, so the order goes from the telling to the general.
_SIGNS = (
    Sign(Kind.FLUX_ADAPTER, start="ip_adapter_proj_model."),
    Sign(Kind.FLUX_ADAPTER, part="ip_adapter_double_stream"),
    Sign(Kind.PULID, start="pulid_"),
    Sign(Kind.PULID, start="id_adapter"),
    Sign(Kind.LORA, part=".lora_down."),
    Sign(Kind.LORA, part=".lora_A."),
    Sign(Kind.LORA, part=".lora.down."),
    Sign(Kind.LORA, part="_lora.down."),
    Sign(Kind.LORA, part=".hada_w1_a"),
    Sign(Kind.LORA, part=".lokr_w1"),
    Sign(Kind.LORA, start="lora_unet_"),
    Sign(Kind.CONTROLNET, start="control_model."),
    Sign(Kind.CONTROLNET, start="controlnet_"),
    Sign(Kind.CONTROLNET, start="input_hint_block."),
    Sign(Kind.CONTROLNET, part="zero_convs."),
    Sign(Kind.CHECKPOINT, start="model.diffusion_model."),
    Sign(Kind.T2I_ADAPTER, start="body.0.block"),
    Sign(Kind.T2I_ADAPTER, start="adapter.body."),
    Sign(Kind.UNET, start="input_blocks."),
    Sign(Kind.UNET, start="unet.down_blocks."),
    Sign(Kind.UNET, start="down_blocks.", part="attentions"),
    Sign(Kind.UNET, start="time_embedding."),
    Sign(Kind.DIT, start="double_blocks."),
    Sign(Kind.DIT, start="joint_blocks."),
    Sign(Kind.DIT, start="transformer_blocks."),
    Sign(Kind.CLIP_VISION, start="vision_model.", part="patch_embedding"),
    Sign(Kind.OPENCLIP, start="visual.", part="conv1.weight"),
    Sign(Kind.OPENCLIP, start="visual.trunk."),
    Sign(Kind.DINO, start="patch_embed."),
    Sign(Kind.DINO, start="embeddings.patch_embeddings."),
    Sign(Kind.TEXT_ENCODER, start="text_model."),
    Sign(Kind.TEXT_ENCODER, part="token_embedding"),
    Sign(Kind.TEXT_ENCODER, start="encoder.block."),
    Sign(Kind.TEXT_ENCODER, part="embed_tokens"),
    Sign(Kind.VAE, start="decoder.conv_in"),
    Sign(Kind.VAE, start="first_stage_model."),
    Sign(Kind.VAE, start="decoder.1."),
    Sign(Kind.EMBEDDING, start="emb_params"),
    Sign(Kind.EMBEDDING, start="string_to_param"),
)


def kind_of(keys: Iterable[str]) -> Kind:
    """The kind of model that has these keys."""
    keys = list(keys)
    has_projector = any(key.startswith(PROJECTOR_PREFIXES) for key in keys)
    has_layers = any(key.startswith(LAYER_PREFIXES) for key in keys)
    if has_projector and has_layers:
        return Kind.ADAPTER
    for sign in _SIGNS:
        if any(sign.matches(key) for key in keys):
            return sign.kind
    return Kind.PARTIAL_ADAPTER if has_projector or has_layers else Kind.UNKNOWN


def why_not_an_adapter(name: str, keys: Iterable[str]) -> str:
    """The message for a file that was chosen as an adapter and is something else."""
    keys = list(keys)
    kind = kind_of(keys)
    expected = "an IP-Adapter has tensors named 'image_proj...' and 'ip_adapter...'"
    if not keys:
        return f"{name} holds no tensors; {expected}. Choose another file."
    if kind is Kind.PARTIAL_ADAPTER:
        has_projector = any(key.startswith(PROJECTOR_PREFIXES) for key in keys)
        missing = "ip_adapter" if has_projector else "image_proj"
        return (
            f"{name} is incomplete: it has no '{missing}...' tensors; {expected}. "
            "Download it again."
        )
    if kind is Kind.UNKNOWN:
        seen = ", ".join(sorted(keys)[:3])
        return (
            f"{name} is not an IP-Adapter: {expected}, this file has {seen}. Choose another file."
        )
    folder = HOME_FOLDERS.get(kind)
    advice = f"It belongs in {folder}. " if folder else ""
    return (
        f"{name} is {kind.value}, not an IP-Adapter for a UNet model; {expected}. "
        f"{advice}Choose another file."
    )
