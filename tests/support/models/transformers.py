"""Pairs of the same transformer: one in `diffusers` (the reference), one in the host's
ModelPatcher, with the same weights; every parameter is random, those of norms too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

TEXT_TOKENS = 9


@dataclass(frozen=True)
class Geometry:
    """A transformer's shape. kind: "Flux", "Chroma", "SD3" or "CosmosT2IPredict2", the host's word.
    double, single: its blocks. rope:
    widths of the axes of the rotary embedding. channels: of its latents. text_dim: width of the
    text states; pooled: of the pooled text. dual: SD3.5-Medium's blocks with two attentions."""

    name: str
    kind: str
    heads: int
    head_dim: int
    double: int
    single: int = 0
    rope: tuple[int, int, int] = (4, 6, 6)
    channels: int = 16
    text_dim: int = 32
    pooled: int = 24
    dual: int = 0

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def blocks(self) -> int:
        return self.double + self.single


TINY_FLUX = Geometry("tiny Flux", "Flux", 4, 16, double=3, single=3)
# ComfyUI counts on Chroma's 344 modulations.
TINY_CHROMA = Geometry("tiny Chroma", "Chroma", 4, 16, double=19, single=38)
TINY_SD3 = Geometry("tiny SD3.5", "SD3", 3, 64, double=3)
# All blocks of SD3.5-Medium's first half have a second attention, of the picture to itself.
TINY_MEDIUM = Geometry("tiny SD3.5-Medium", "SD3", 3, 64, double=3, dual=2)
TINY_COSMOS = Geometry("tiny Cosmos", "CosmosT2IPredict2", 2, 32, double=3)
FLUX_DEV = Geometry("Flux.1", "Flux", 24, 128, 19, 38, (16, 56, 56), text_dim=4096, pooled=768)
SD35_LARGE = Geometry("SD3.5-Large", "SD3", 38, 64, 38, text_dim=4096, pooled=2048)
COSMOS_2B = Geometry("Cosmos", "CosmosT2IPredict2", 16, 128, 28, text_dim=1024)
# One block of each kind at the published width.
WIDE_FLUX = Geometry("Flux, two blocks", "Flux", 24, 128, 1, 1, (16, 56, 56), text_dim=4096)
WIDE_SD3 = Geometry("SD3.5-Large's width", "SD3", 38, 64, 1, text_dim=4096, pooled=2048)


@dataclass(eq=False)
class Pair:
    """The same network twice. reference: of `diffusers`; model: the host's ModelPatcher."""

    geometry: Geometry
    reference: Any
    model: Any

    def latents(self, batch: int = 2, height: int = 8, width: int = 12) -> Tensor:
        shape = (1, height, width) if self.geometry.kind.startswith("Cosmos") else (height, width)
        return _seeded(7, batch, self.geometry.channels, *shape)

    def text(self, batch: int = 2) -> tuple[Tensor, Tensor]:
        """Text states and pooled text."""
        geometry = self.geometry
        return (
            _seeded(8, batch, TEXT_TOKENS, geometry.text_dim),
            _seeded(9, batch, geometry.pooled),
        )

    @cached_property
    def blocks(self) -> list[Any]:
        """The host's blocks, double ones first."""
        network = self.model.model.diffusion_model
        if self.geometry.kind == "SD3":
            return list(network.joint_blocks)
        if self.geometry.kind == "CosmosT2IPredict2":
            return list(network.blocks)
        return [*network.double_blocks, *network.single_blocks]


def _seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_pair(geometry: Geometry, seed: int = 0) -> Pair:
    """A reference with random weights, and the host's MODEL with the same."""
    reference = _REFERENCES[geometry.kind](geometry)
    randomise(reference, seed)
    return Pair(geometry, reference, _MODELS[geometry.kind](geometry, reference.state_dict()))


def random_model(geometry: Geometry, device: str = "cpu") -> Any:
    """The host's MODEL alone, with random weights; on the meta device without any."""
    import comfy.ldm.flux.model
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    classes: dict[str, Any] = {
        "Flux": (comfy.ldm.flux.model.Flux, flux_config),
        "SD3": (OpenAISignatureMMDITWrapper, sd3_config),
    }
    kind, config_of = classes[geometry.kind]
    config = config_of(geometry)
    if "pos_embed_max_size" in config:  # as published
        config |= {"pos_embed_max_size": 192, "num_patches": 192**2}
    network = _network(kind, config, device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return _patcher(network, geometry.kind, config)


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Every parameter at random, those of one dimension around 1 for norms and around 0 else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight") and value.ndim == 1
            scale = 0.3 if value.ndim < 2 else value[0].numel() ** -0.5
            value.copy_(1 + 0.3 * noise if norm else scale * noise)


def _streams(geometry: Geometry) -> dict[str, Any]:
    """What `diffusers`' Flux and Chroma are both told."""
    return {
        "patch_size": 1,
        "in_channels": 4 * geometry.channels,
        "num_layers": geometry.double,
        "num_single_layers": geometry.single,
        "attention_head_dim": geometry.head_dim,
        "num_attention_heads": geometry.heads,
        "joint_attention_dim": geometry.text_dim,
        "axes_dims_rope": geometry.rope,
    }


def _flux_reference(geometry: Geometry) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        **_streams(geometry),
        pooled_projection_dim=geometry.pooled,
        guidance_embeds=True,
    ).train(False)


def _chroma_reference(geometry: Geometry) -> Any:
    from diffusers import ChromaTransformer2DModel

    return ChromaTransformer2DModel(
        **_streams(geometry),
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=2,
    ).train(False)


def _sd3_reference(geometry: Geometry) -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=geometry.channels,
        out_channels=geometry.channels,
        num_layers=geometry.double,
        attention_head_dim=geometry.head_dim,
        num_attention_heads=geometry.heads,
        joint_attention_dim=geometry.text_dim,
        caption_projection_dim=geometry.width,
        pooled_projection_dim=geometry.pooled,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(geometry.dual)),
    ).train(False)


def _cosmos_reference(geometry: Geometry) -> Any:
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        in_channels=geometry.channels,
        out_channels=geometry.channels,
        num_attention_heads=geometry.heads,
        attention_head_dim=geometry.head_dim,
        num_layers=geometry.double,
        text_embed_dim=geometry.text_dim,
        adaln_lora_dim=16,
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    ).train(False)


def flux_config(geometry: Geometry) -> dict[str, Any]:
    """Arguments of the host's Flux."""
    from comfy.ldm.flux.model import FluxParams

    own = {"vec_in_dim": geometry.pooled, "guidance_embed": True}
    return {"image_model": "flux", **_known(FluxParams, {**_common(geometry), **own})}


def chroma_config(geometry: Geometry) -> dict[str, Any]:
    """Arguments of the host's Chroma, whose channels are counted after patching."""
    from comfy.ldm.chroma.model import ChromaParams

    own = {
        "in_channels": 4 * geometry.channels,
        "out_channels": 4 * geometry.channels,
        "in_dim": 64,
        "out_dim": geometry.width,
        "hidden_dim": 32,
        "n_layers": 2,
        "vec_in_dim": None,
    }
    return {"image_model": "chroma", **_known(ChromaParams, {**_common(geometry), **own})}


def _common(geometry: Geometry) -> dict[str, Any]:
    return {
        "in_channels": geometry.channels,
        "out_channels": geometry.channels,
        "context_in_dim": geometry.text_dim,
        "hidden_size": geometry.width,
        "mlp_ratio": 4.0,
        "num_heads": geometry.heads,
        "depth": geometry.double,
        "depth_single_blocks": geometry.single,
        "axes_dim": list(geometry.rope),
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "txt_ids_dims": [],
    }


def _known(parameters: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that this version of the host knows."""
    return {name: value for name, value in given.items() if name in parameters.__dataclass_fields__}


def flux_controlnet(geometry: Geometry, seed: int = 11) -> Any:
    """The host's CONTROL_NET for a Flux of this shape, with random weights."""
    import comfy.controlnet
    import comfy.ldm.flux.controlnet

    network = _network(comfy.ldm.flux.controlnet.ControlNetFlux, flux_config(geometry))
    randomise(network, seed)
    return comfy.controlnet.ControlNet(
        network.train(False), load_device=torch.device("cpu"), extra_conds=["y", "guidance"]
    )


def sd3_config(geometry: Geometry) -> dict[str, Any]:
    """Arguments of the host's MMDiT."""
    text = {"in_features": geometry.text_dim, "out_features": geometry.width}
    return {
        "input_size": None,
        "patch_size": 2,
        "in_channels": geometry.channels,
        "depth": geometry.heads,  # the host's word for heads
        "num_blocks": geometry.double,
        "adm_in_channels": geometry.pooled,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": text},
        "pos_embed_max_size": 16,
        "num_patches": 256,
        "qk_norm": "rms",
        "qkv_bias": True,
        "x_block_self_attn_layers": list(range(geometry.dual)),
    }


def cosmos_config(geometry: Geometry) -> dict[str, Any]:
    """Arguments of the host's Cosmos-Predict2."""
    return {
        "image_model": "cosmos_predict2",
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": geometry.channels,
        "out_channels": geometry.channels,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": geometry.width,
        "num_blocks": geometry.double,
        "num_heads": geometry.heads,
        "crossattn_emb_channels": geometry.text_dim,
        "pos_emb_cls": "rope3d",
        "use_adaln_lora": True,
        "adaln_lora_dim": 16,
        "rope_h_extrapolation_ratio": 4.0,
        "rope_w_extrapolation_ratio": 4.0,
    }


def _flux_model(geometry: Geometry, state: Mapping[str, Tensor]) -> Any:
    import comfy.ldm.flux.model
    import comfy.model_base
    import comfy.utils

    config = flux_config(geometry)
    network = _network(comfy.ldm.flux.model.Flux, config)
    _fill(network, comfy.utils.flux_to_diffusers(config), state)
    return _patcher(network, "Flux", config)


def _chroma_model(geometry: Geometry, state: Mapping[str, Tensor]) -> Any:
    import comfy.ldm.chroma.model
    import comfy.utils

    config = chroma_config(geometry)
    network = _network(comfy.ldm.chroma.model.Chroma, config)
    names: dict[str, Any] = dict(comfy.utils.flux_to_diffusers(config))
    norm = (
        "weight" if "distilled_guidance_layer.norms.0.weight" in network.state_dict() else "scale"
    )
    for key in state:
        if key.startswith("distilled_guidance_layer."):
            name = key.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
            names[key] = name.replace(".weight", f".{norm}") if ".norms." in key else name
    _fill(network, names, state)
    return _patcher(network, "Chroma", config)


def _sd3_model(geometry: Geometry, state: Mapping[str, Tensor]) -> Any:
    import comfy.utils
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    config = sd3_config(geometry)
    network = _network(OpenAISignatureMMDITWrapper, config)
    # The host's names take the number of heads for that of blocks.
    names = comfy.utils.mmdit_to_diffusers({**config, "depth": geometry.heads})
    _fill(network, _last_block(names, geometry), state)
    return _patcher(network, "SD3", config)


def _cosmos_model(geometry: Geometry, state: Mapping[str, Tensor]) -> Any:
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    config = cosmos_config(geometry)
    network = _network(MiniTrainDIT, config)
    _fill(network, {key: _cosmos_name(key) for key in state}, state)
    return _patcher(network, geometry.kind, config)


# Where diffusers' names of Cosmos differ from the published ones.
_COSMOS = (
    ("transformer_blocks.", "blocks."),
    (".norm1.linear_", ".adaln_modulation_self_attn."),
    (".norm2.linear_", ".adaln_modulation_cross_attn."),
    (".norm3.linear_", ".adaln_modulation_mlp."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q.", ".q_proj."),
    (".to_k.", ".k_proj."),
    (".to_v.", ".v_proj."),
    (".to_out.0.", ".output_proj."),
    (".norm_q.", ".q_norm."),
    (".norm_k.", ".k_norm."),
    (".ff.net.0.proj.", ".mlp.layer1."),
    (".ff.net.2.", ".mlp.layer2."),
    ("patch_embed.proj.", "x_embedder.proj.1."),
    ("time_embed.t_embedder.", "t_embedder.1."),
    ("time_embed.norm.", "t_embedding_norm."),
    ("norm_out.linear_", "final_layer.adaln_modulation."),
    ("proj_out.", "final_layer.linear."),
)


def _cosmos_name(key: str) -> str:
    for theirs, published in _COSMOS:
        key = key.replace(theirs, published)
    return key


def _last_block(names: Mapping[str, Any], geometry: Geometry) -> dict[str, Any]:
    """Names with the swap of shift and scale at the last block, where the host's list has it at the
    block with the number of heads."""
    last, counted = geometry.double - 1, geometry.heads - 1
    found = dict(names)
    for end in ("weight", "bias"):
        wrong = f"transformer_blocks.{counted}.norm1_context.linear.{end}"
        right = f"transformer_blocks.{last}.norm1_context.linear.{end}"
        target, part, swap = names[wrong]
        found[right] = (target.replace(f".{counted}.", f".{last}."), part, swap)
    return found


def _network(kind: Callable[..., Any], config: Mapping[str, Any], device: str = "cpu") -> Any:
    import comfy.ops

    return kind(**config, device=device, dtype=torch.float32, operations=comfy.ops.manual_cast)


def _fill(network: Any, names: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Put the reference's tensors into the host's network. names: as the host lists them, a key, or
    a key with a part of its first axis and a change."""
    own, unset = network.state_dict(), set(network.state_dict())
    for key, value in state.items():
        name = names[key]
        target, part, change = (name, None, None) if isinstance(name, str) else (*name, None)[:3]
        place = own[target] if part is None else own[target].narrow(*part)
        place.copy_(value if change is None else change(value))
        unset.discard(target)
    if unset:
        raise ValueError(f"not filled: {sorted(unset)[:5]}")


def _patcher(network: Any, kind: str, config: Mapping[str, Any]) -> Any:
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    family = getattr(comfy.supported_models, kind)(dict(config))
    family.unet_config = {**config, "disable_unet_model_creation": True}
    name = {"CosmosT2IPredict2": "CosmosPredict2"}.get(kind, kind)
    model = getattr(comfy.model_base, name)(family)
    family.unet_config = dict(config)
    model.diffusion_model = network.train(False)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


_REFERENCES = {
    "Flux": _flux_reference,
    "Chroma": _chroma_reference,
    "SD3": _sd3_reference,
    "CosmosT2IPredict2": _cosmos_reference,
}
_MODELS = {
    "Flux": _flux_model,
    "Chroma": _chroma_model,
    "SD3": _sd3_model,
    "CosmosT2IPredict2": _cosmos_model,
}
