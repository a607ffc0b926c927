"""What kind of model a set of tensors is, told from key names (and, for one kind, a width)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..errors import Problem
from .layouts import halves
from .tensors import Shapes


class Kind(str, Enum):
    """Kinds of model files that end up in the wrong folder."""

    ADAPTER = "an IP-Adapter"
    PARTIAL_ADAPTER = "a part of an IP-Adapter"
    INSTRUCT = "an IP-Adapter-Instruct model"
    ART = "an adapter in the layout and widths of IP-Adapter-Art"
    CSGO = "a CSGO model"
    STYLESHOT = "a StyleShot model"
    MIP = "a MIP-Adapter model"
    PULID = "a PuLID model"
    PULID_FLUX = "a PuLID model for Flux"
    CONSISTENT_ID = "a ConsistentID model"
    UNIPORTRAIT = "a UniPortrait model"
    PHOTOMAKER = "a PhotoMaker model"
    INSTANT_CHARACTER = "an InstantCharacter model for Flux"
    ANIMA = "an IP-Adapter for Anima"
    HUNYUAN = "an IP-Adapter for HunyuanDiT"
    LYNX = "a Lynx model for Wan"
    REDUX = "a style model (Flux Redux)"
    T2I_STYLE = "a style model (T2I-Adapter)"
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
    """One row of a table: any key that has `start`, `part` and `end` says `kind`."""

    kind: Kind
    start: str = ""
    part: str = ""
    end: str = ""

    def matches(self, key: str) -> bool:
        return key.startswith(self.start) and self.part in key and key.endswith(self.end)


@dataclass(frozen=True)
class MethodSign:
    """One row of another method's signs: a module's name begins with `module`, whatever it lies in,
    some key has `also`, and the tensor's last axis is `width` (0: any)."""

    kind: Kind
    module: str
    also: str = ""
    width: int = 0

    def matches(self, shapes: Shapes, text: str) -> bool:
        """text: all keys, each after a line's end."""
        if self.also not in text or not any(mark + self.module in text for mark in "\n."):
            return False
        return not self.width or any(
            f".{self.module}" in f".{key}" and shape[-1:] == (self.width,)
            for key, shape in shapes.items()
        )


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
    Kind.PHOTOMAKER: "models/photomaker",
    Kind.REDUX: "models/style_models",
    Kind.T2I_STYLE: "models/style_models",
}

# Adapters of other methods, and why this pack cannot use them.
OTHER_METHODS = {
    Kind.INSTRUCT: "its projector also reads an instruction in words",
    Kind.ART: "it reads a style vector that the CSD encoder makes, not a CLIP Vision encoder",
    Kind.CSGO: "it has separate tokens for content and style",
    Kind.STYLESHOT: "it has a style encoder of its own, which reads pieces of three sizes",
    Kind.MIP: "it weighs every reference by the words of the prompt",
    Kind.PULID: "it changes what the text attends to, from a face and an EVA-CLIP encoder",
    Kind.PULID_FLUX: "it has attention layers of its own, for a face and an EVA-CLIP encoder",
    Kind.CONSISTENT_ID: "it reads the parts of a face with an encoder of its own",
    Kind.UNIPORTRAIT: "it reads faces with an encoder of its own and routes them to places",
    Kind.PHOTOMAKER: "it changes the words of the prompt, not the attention to a picture",
    Kind.INSTANT_CHARACTER: "it is made for a transformer model, Flux",
    Kind.ANIMA: "it is made for a transformer model, Anima, and the PE-Core encoder",
    Kind.HUNYUAN: "it is made for a transformer model, HunyuanDiT",
    Kind.LYNX: "it is made for a transformer model for video, Wan",
    Kind.REDUX: "it adds words to the prompt of Flux, by ComfyUI's own Apply Style Model",
    Kind.T2I_STYLE: "it adds words to the prompt, by ComfyUI's own Apply Style Model",
}

# Signs of other methods: their files may hold an adapter's two halves as well.
_OTHER_METHODS = (
    MethodSign(Kind.INSTRUCT, "proj_prompt_input"),
    MethodSign(Kind.INSTRUCT, "proj_new_input"),
    MethodSign(Kind.ART, "encoder_hid_proj.image_embeds.weight", ".processor.to_k_ip", 768),
    MethodSign(Kind.CSGO, "content_image_proj", "style_image_proj"),
    MethodSign(Kind.STYLESHOT, "style_image_proj_modules."),
    MethodSign(Kind.MIP, "text_to_weight"),
    MethodSign(Kind.PULID_FLUX, "pulid_ca."),
    MethodSign(Kind.PULID, "pulid_"),
    MethodSign(Kind.PULID, "id_adapter"),
    MethodSign(Kind.PULID, "id_embedding_mapping."),
    MethodSign(Kind.PULID, "image_proj.body.", "to_k_ip"),
    MethodSign(Kind.PULID, "mapping_patch_", "to_k_ip"),
    MethodSign(Kind.CONSISTENT_ID, "FacialEncoder."),
    MethodSign(Kind.UNIPORTRAIT, "faceid_adapter."),
    MethodSign(Kind.UNIPORTRAIT, "faceid_proj."),
    MethodSign(Kind.PHOTOMAKER, "id_encoder.", "lora_weights."),
    MethodSign(Kind.INSTANT_CHARACTER, "to_k_ip.weight", ".norm_ip_q.", 4096),
    MethodSign(Kind.ANIMA, "ip_centroid"),
    MethodSign(Kind.ANIMA, "ip_gate.", "to_k_ip."),
    MethodSign(Kind.HUNYUAN, "kv_proj_ip_adapter"),
    MethodSign(Kind.LYNX, "cross_attn.ip_adapter."),
    MethodSign(Kind.REDUX, "redux_down."),
    MethodSign(Kind.T2I_STYLE, "style_embedding"),
)
# The first row that any key matches decides, so the order goes from the telling to the general.
_SIGNS = (
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


def kind_of(shapes: Shapes) -> Kind:
    """The kind of model that has tensors of these names and shapes."""
    text = "".join(f"\n{key}" for key in shapes)
    for method in _OTHER_METHODS:
        if method.matches(shapes, text):
            return method.kind
    found = halves(shapes)
    if found.projector and found.layers:
        return Kind.ADAPTER
    if "to_k_ip" in text or "ip_adapter_double_stream" in text:
        return Kind.PARTIAL_ADAPTER
    for sign in _SIGNS:
        if any(sign.matches(key) for key in shapes):
            return sign.kind
    return Kind.PARTIAL_ADAPTER if found.projector or found.layers else Kind.UNKNOWN


def problem_of(kind: Kind) -> Problem:
    """The problem of a file of this kind that was chosen as an adapter."""
    return Problem.UNSUPPORTED if kind in OTHER_METHODS else Problem.WRONG_FILE


def why_not_an_adapter(name: str, shapes: Shapes) -> str:
    """The message for a file that was chosen as an adapter and is something else."""
    kind = kind_of(shapes)
    expected = "an IP-Adapter has tensors named 'image_proj...' and 'ip_adapter...'"
    folder = HOME_FOLDERS.get(kind)
    advice = f"It belongs in {folder}. " if folder else ""
    if not shapes:
        return f"{name} holds no tensors; {expected}. Choose another file."
    if kind in OTHER_METHODS:
        return (
            f"{name} is {kind.value}, which this pack cannot use: {OTHER_METHODS[kind]}. {advice}"
            "Take the nodes that are made for it, or choose another file."
        )
    if kind is Kind.PARTIAL_ADAPTER:
        missing = "ip_adapter" if halves(shapes).projector else "image_proj"
        return (
            f"{name} is incomplete: it has no '{missing}...' tensors; {expected}. "
            "Download it again, or choose the whole adapter."
        )
    if kind is Kind.UNKNOWN:
        seen = ", ".join(sorted(shapes)[:3])
        return (
            f"{name} is not an IP-Adapter: {expected}, this file has {seen}. Choose another file."
        )
    return f"{name} is {kind.value}, not an IP-Adapter; {expected}. {advice}Choose another file."
