"""Pairs of the same UNet: one in `diffusers` (the reference), one in the host's ModelPatcher,
sharing weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Geometry:
    """A UNet's shape, in the words of both sides."""

    name: str
    diffusers: Mapping[str, Any]
    host: Mapping[str, Any]
    context_dim: int
    widths: tuple[int, ...]  # of each cross-attention, in adapter order
    latent: int = 16
    adm: int = 0

    @property
    def layers(self) -> int:
        return len(self.widths)


def _sd15(name: str, channels: int, heads: int, context: int, latent: int) -> Geometry:
    sizes = [channels * m for m in (1, 2, 4, 4)]
    down = [s for s in sizes[:3] for _ in range(2)]
    up = [s for s in reversed(sizes[:3]) for _ in range(3)]
    return Geometry(
        name,
        dict(
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=tuple(sizes),
            layers_per_block=2,
            cross_attention_dim=context,
            attention_head_dim=heads,
        ),
        dict(
            model_channels=channels,
            channel_mult=[1, 2, 4, 4],
            num_res_blocks=[2] * 4,
            num_heads=heads,
            num_head_channels=-1,
            transformer_depth=[1] * 6 + [0, 0],
            transformer_depth_output=[1] * 9 + [0] * 3,
            transformer_depth_middle=1,
            use_linear_in_transformer=False,
        ),
        context,
        tuple(down + up + [sizes[3]]),
        latent,
    )


def _sdxl(name: str, channels: int, head_dim: int, context: int, adm: int, latent: int) -> Geometry:
    sizes = [channels, channels * 2, channels * 4]
    down = [sizes[1]] * 4 + [sizes[2]] * 20
    up = [sizes[2]] * 30 + [sizes[1]] * 6
    return Geometry(
        name,
        dict(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=tuple(sizes),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=context,
            attention_head_dim=tuple(size // head_dim for size in sizes),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=adm,
        ),
        dict(
            model_channels=channels,
            channel_mult=[1, 2, 4],
            num_res_blocks=[2] * 3,
            num_heads=-1,
            num_head_channels=head_dim,
            transformer_depth=[0, 0, 2, 2, 10, 10],
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
            transformer_depth_middle=10,
            use_linear_in_transformer=True,
            num_classes="sequential",
            adm_in_channels=adm,
        ),
        context,
        tuple(down + up + [sizes[2]] * 10),
        latent,
        adm,
    )


TINY_SD15 = _sd15("tiny SD1.5", 32, 8, 64, 16)
TINY_SDXL = _sdxl("tiny SDXL", 32, 16, 64, 2816, 16)
FULL_SD15 = _sd15("SD1.5", 320, 8, 768, 32)
FULL_SDXL = _sdxl("SDXL", 320, 64, 2048, 2816, 32)


@dataclass(eq=False)
class Pair:
    """The same network twice."""

    geometry: Geometry
    reference: Any  # diffusers UNet2DConditionModel
    model: Any  # host ModelPatcher
    extra: dict[str, Any] = field(default_factory=dict)

    def inputs(self, batch: int = 2, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, timesteps and text states."""
        g = torch.Generator().manual_seed(seed)
        size = self.geometry.latent
        return (
            torch.randn(batch, 4, size, size, generator=g),
            torch.full((batch,), 500.0),
            torch.randn(batch, 77, self.geometry.context_dim, generator=g),
        )


def host_config(geometry: Geometry) -> dict[str, Any]:
    """Arguments of the host's UNetModel."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "context_dim": geometry.context_dim,
        "use_spatial_transformer": True,
        "legacy": False,
        "dtype": torch.float32,
        **geometry.host,
    }


def build_reference(geometry: Geometry, seed: int = 0) -> Any:
    """A diffusers UNet with seeded random weights."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(sample_size=geometry.latent, **geometry.diffusers).train(False)


def build_model(
    geometry: Geometry, state: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Any:
    """The host's UNet in a real ModelPatcher; `state` is a diffusers state dict, whose
    tensors it shares."""
    import comfy.utils

    config = host_config(geometry)
    if state is None:
        unet = host_unet(config, "cpu")
        g = torch.Generator().manual_seed(seed)
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.02, generator=g)
    else:
        names = comfy.utils.unet_to_diffusers(config)
        unet = host_unet(config, "meta")
        unet.load_state_dict({names[key]: value for key, value in state.items()}, assign=True)
    return patcher(unet, config)


def build_empty_model(geometry: Geometry, dtype: torch.dtype = torch.float16) -> Any:
    """The host's UNet at any size without memory: its parameters are on the meta device."""
    config = {**host_config(geometry), "dtype": dtype}
    return patcher(host_unet(config, "meta"), config)


def host_unet(config: Mapping[str, Any], device: str) -> Any:
    """The host's UNetModel with uninitialised parameters."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**config, device=device, operations=comfy.ops.manual_cast)


def patcher(unet: Any, config: Mapping[str, Any]) -> Any:
    """A ModelPatcher around a UNet: SDXL's class if it has class embeddings, else SD1.5's."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    sdxl = "adm_in_channels" in config
    family = (comfy.supported_models.SDXL if sdxl else comfy.supported_models.SD15)(dict(config))
    family.unet_config = {**config, "disable_unet_model_creation": True}
    model = (comfy.model_base.SDXL if sdxl else comfy.model_base.BaseModel)(family)
    family.unet_config = dict(config)
    model.diffusion_model = unet.train(False)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def build_pair(geometry: Geometry, seed: int = 0) -> Pair:
    """A reference and the host's MODEL that shares its tensors."""
    reference = build_reference(geometry, seed)
    pair = Pair(geometry, reference, build_model(geometry, reference.state_dict()))
    if geometry.adm:
        pair.extra = _added_conditions(reference, geometry)
    return pair


def _added_conditions(reference: Any, geometry: Geometry, batch: int = 2) -> dict[str, Any]:
    g = torch.Generator().manual_seed(11)
    text = torch.randn(batch, geometry.adm - 6 * 256, generator=g)
    ids = torch.tensor([[512.0, 512, 0, 0, 512, 512]]).repeat(batch, 1)
    times = reference.add_time_proj(ids.flatten()).reshape(batch, -1)
    return {
        "added_cond_kwargs": {"text_embeds": text, "time_ids": ids},
        "y": torch.cat([text, times], dim=1),
    }


def random_adapter(
    geometry: Geometry,
    *,
    plus: bool = False,
    embed_dim: int = 48,
    seed: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, Tensor]]:
    """A seeded random adapter for a geometry, as nested `{image_proj, ip_adapter}`, in the official
    key layout."""
    g = torch.Generator().manual_seed(seed)
    dim = geometry.context_dim

    def weight(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g) / shape[-1] ** 0.5).to(dtype)

    def norm(size: int) -> tuple[Tensor, Tensor]:
        return (1 + 0.1 * weight(size)), 0.1 * weight(size)

    image_proj = (
        _resampler(weight, norm, dim, embed_dim)
        if plus
        else {
            "proj.weight": weight(4 * dim, embed_dim),
            "proj.bias": 0.1 * weight(4 * dim),
            **_named("norm", norm(dim)),
        }
    )
    layers = {}
    for number, width in enumerate(geometry.widths):
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = weight(width, dim)
    return {"image_proj": image_proj, "ip_adapter": layers}


def _named(name: str, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.weight": pair[0], f"{name}.bias": pair[1]}


def _resampler(weight: Any, norm: Any, out: int, embed: int) -> dict[str, Tensor]:
    dim = 128
    state = {
        "latents": weight(1, 16, dim),
        **_named("proj_in", (weight(dim, embed), 0.1 * weight(dim))),
        **_named("proj_out", (weight(out, dim), 0.1 * weight(out))),
        **_named("norm_out", norm(out)),
    }
    for layer in range(4):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        state |= {
            **_named(f"{attention}.norm1", norm(dim)),
            **_named(f"{attention}.norm2", norm(dim)),
            f"{attention}.to_q.weight": weight(dim, dim),
            f"{attention}.to_kv.weight": weight(2 * dim, dim),
            f"{attention}.to_out.weight": weight(dim, dim),
            **_named(f"{feed_forward}.0", norm(dim)),
            f"{feed_forward}.1.weight": weight(4 * dim, dim),
            f"{feed_forward}.3.weight": weight(dim, 4 * dim),
        }
    return state
