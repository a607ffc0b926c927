"""Run transformers through the reference (`diffusers`) and through the host, on the same
weights and inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..models.transformers import Pair
from .sampler import on_grid

TIME = 0.6  # of the noise schedule, from 1 to 0


def packed(latents: Tensor) -> Tensor:
    """(rows, channels, height, width) -> (rows, patches, 4 channels), as Flux takes them."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpacked(patches: Tensor, latents: Tensor) -> Tensor:
    """The inverse of `packed`, for latents of this shape."""
    height = latents.shape[-2] // 2
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=2, q=2)


def positions(latents: Tensor) -> Tensor:
    """(patches, 3): 0, row, column."""
    rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cat([torch.zeros(len(grid), 1), grid], dim=1)


def reference_output(
    pair: Pair, joint: Mapping[str, Any] | None = None, control: Sequence[Tensor] = ()
) -> Tensor:
    """What `diffusers` predicts. joint: its joint_attention_kwargs. control: of a ControlNet for
    Flux, (rows, patches, width) per block."""
    latents, (text, pooled) = pair.latents(), pair.text()
    time = torch.full((len(latents),), TIME)
    with torch.no_grad():
        more: dict[str, Any] = {} if joint is None else {"joint_attention_kwargs": joint}
        if control:
            double = pair.geometry.double
            more["controlnet_block_samples"] = control[:double]
            more["controlnet_single_block_samples"] = control[double:]
        return reference_call(pair, latents, time, text, pooled, **more)


def reference_call(
    pair: Pair, latents: Tensor, time: Tensor, text: Tensor, pooled: Tensor, **more: Any
) -> Tensor:
    """What `diffusers` predicts of noisy latents at times of 0 to 1. more: arguments of its own."""
    given: dict[str, Any] = {"encoder_hidden_states": text, **more}
    if pair.geometry.kind == "CosmosT2IPredict2":
        nothing = latents.new_zeros(1, 1, *latents.shape[-2:])
        return pair.reference(latents, time, text, padding_mask=nothing).sample
    if pair.geometry.kind == "SD3":
        given |= {"pooled_projections": pooled, "timestep": 1000 * time}
        return pair.reference(hidden_states=latents, **given).sample
    given |= {"txt_ids": torch.zeros(text.shape[1], 3), "img_ids": positions(latents)}
    if pair.geometry.kind == "Flux":
        given |= {"pooled_projections": pooled, "guidance": torch.full_like(time, 3.5)}
    patches = pair.reference(hidden_states=packed(latents), timestep=time, **given).sample
    return unpacked(patches, latents)


def model_output(pair: Pair, model: Any, control: Sequence[Tensor] = (), **options: Any) -> Tensor:
    """What a MODEL of the host predicts: row 0 uncond, row 1 cond. control: as for
    `reference_output`. options: transformer options beside those of the MODEL."""
    latents, (text, pooled) = pair.latents(), pair.text()
    cosmos = pair.geometry.kind == "CosmosT2IPredict2"
    sigma = TIME / (1 - TIME) if cosmos else TIME  # noise over signal
    given = {
        **model.model_options["transformer_options"],
        "wrappers": model.wrappers,  # the host puts them there when a sampling begins
        "cond_or_uncond": [1, 0],
        "sigmas": torch.full((2,), sigma),
        **options,
    }
    kwargs: dict[str, Any] = {
        "Flux": {"y": pooled, "guidance": torch.full((2,), 3.5)},
        "Chroma": {"guidance": torch.zeros(2)},
        "SD3": {"y": pooled},
        "CosmosT2IPredict2": {},
    }[pair.geometry.kind]
    if control:
        double = pair.geometry.double
        kwargs["control"] = {"input": control[:double], "output": control[double:]}
    if cosmos:
        latents = latents * (1 + sigma)  # which the host takes back
    with torch.no_grad():
        return _predicted(model.model, latents, text, given, kwargs)


def _predicted(
    model: Any, latents: Tensor, text: Tensor, options: dict[str, Any], kwargs: dict[str, Any]
) -> Tensor:
    """The network's own output, from the host's whole `apply_model` with its wrappers."""
    seen: list[Tensor] = []

    def note(_module: Any, _args: Any, output: Tensor) -> None:
        seen.append(output)

    handle = model.diffusion_model.register_forward_hook(note)
    try:
        given = {"c_crossattn": text, "transformer_options": options, **kwargs}
        model.apply_model(latents, options["sigmas"], **given)
    finally:
        handle.remove()
    return seen[0]


@dataclass(frozen=True, eq=False)
class Case:
    """Adapters with their weights, and features per adapter, (images, ...) cond and (1, ...)
    uncond. A weight is one number or one per layer."""

    adapters: Sequence[Mapping[str, Tensor]]
    weights: Sequence[float | Sequence[float]]
    cond: Sequence[Tensor]
    uncond: Sequence[Tensor]
    mask: Tensor | None = None


def xlabs_output(pair: Pair, case: Case, control: Sequence[Tensor] = ()) -> Tensor:
    """What `diffusers` predicts with XLabs' adapters: row 0 uncond, row 1 cond."""
    network, plain = pair.reference, dict(pair.reference.attn_processors)
    states = [official_xlabs(state) for state in case.adapters]
    try:
        network._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
        double = [one for one in network.attn_processors.values() if hasattr(one, "scale")]
        for number, processor in enumerate(double):
            processor.scale = [
                weight if isinstance(weight, (int, float)) else weight[number]
                for weight in case.weights
            ]
        embeds = [
            torch.stack([uncond.expand_as(cond), cond])
            for cond, uncond in zip(case.cond, case.uncond, strict=True)
        ]
        return reference_output(pair, {"ip_adapter_image_embeds": embeds}, control)
    finally:
        network.encoder_hid_proj = None
        network.set_attn_processor(plain)


def official_xlabs(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """XLabs' file as `diffusers` renames it when it loads one."""
    halves: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        if key.startswith("ip_adapter_proj_model."):
            halves["image_proj"][key.removeprefix("ip_adapter_proj_model.")] = value
        else:
            number, part = key.split(".")[1], key.split("_")[-2]
            halves["ip_adapter"][f"{number}.to_{part}_ip.{key.rsplit('.')[-1]}"] = value
    return halves


def _sd3_with(pair: Pair, resampler: Any, features: Tensor) -> Tensor:
    """What `diffusers` predicts where all rows are shown the same pictures: (images, patches,
    width), whose tokens lie one after another."""
    with torch.no_grad():
        tokens, moment = resampler(features, torch.full((len(features),), 1000 * TIME))
    tokens, moment = tokens.flatten(0, 1)[None].expand(2, -1, -1), moment[:1].expand(2, -1)
    return reference_output(pair, {"ip_hidden_states": tokens, "temb": moment})


@dataclass(frozen=True, eq=False)
class ByPosition:
    """A scale per row of the picture, where `diffusers` asks a number whether it is not 0 and then
    multiplies by it. factor: (1, positions, 1)."""

    factor: Tensor

    @classmethod
    def of(cls, pair: Pair, mask: Tensor, scale: float) -> ByPosition:
        """mask: (1, height, width)."""
        height, width = pair.latents().shape[-2:]
        return cls(scale * on_grid(mask[0], (height // 2, width // 2)).reshape(1, -1, 1))

    def __rmul__(self, term: Tensor) -> Tensor:
        return term * self.factor.to(term)


def sd3_output(pair: Pair, case: Case) -> Tensor:
    """What `diffusers` predicts with one adapter of SD3.5's kind: row 0 uncond, row 1 cond."""
    network, plain = pair.reference, dict(pair.reference.attn_processors)
    (state,), (weight,) = case.adapters, case.weights
    halves: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        half, _, name = key.partition(".")
        halves[half][name] = value
    try:
        processors = network._convert_ip_adapter_attn_to_diffusers(halves["ip_adapter"], False)
        for number, processor in enumerate(processors.values()):
            scale = weight if isinstance(weight, (int, float)) else weight[number]
            processor.scale = scale if case.mask is None else ByPosition.of(pair, case.mask, scale)
        network.set_attn_processor(dict(processors))
        resampler = network._convert_ip_adapter_image_proj_to_diffusers(halves["image_proj"], False)
        rows = [
            _sd3_with(pair, resampler, features)[number]
            for number, features in enumerate((case.uncond[0], case.cond[0]))
        ]
        return torch.stack(rows)
    finally:
        network.set_attn_processor(plain)


@contextmanager
def normed_terms(
    pair: Pair, images: Sequence[tuple[Tensor, Tensor]], weight: float = 1.0
) -> Iterator[None]:
    """The reference with `weight * Attn(Q, K', V')` before each attention's projection, written
    plainly: Q as its norm gives it, K' and V' (rows, tokens, width) per block."""
    blocks = pair.reference.transformer_blocks
    attentions = [block.attn if hasattr(block, "attn") else block.attn2 for block in blocks]
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        return lambda _module, _args, query: seen.__setitem__(number, query)

    def add(number: int) -> Any:
        def added(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            query = seen[number]
            key, value = (
                part.unflatten(-1, (query.shape[1], -1)).transpose(1, 2) for part in images[number]
            )
            scores = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
            return (args[0] + weight * (scores @ value).transpose(1, 2).flatten(2),)

        return added

    hooks = [
        hook
        for number, attention in enumerate(attentions)
        for hook in (
            attention.norm_q.register_forward_hook(keep(number)),
            attention.to_out[0].register_forward_pre_hook(add(number)),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def normed_pairs(
    state: Mapping[str, Tensor], features: Tensor, blocks: int, head_dim: int
) -> list[tuple[Tensor, Tensor]]:
    """K' and V' per block of an adapter of this pack's layout, from one picture's features, (rows,
    width), written plainly; differentiable in `state`."""
    functional = torch.nn.functional
    tokens = functional.linear(
        features, state["image_proj.proj.weight"], state["image_proj.proj.bias"]
    )
    width = len(state["image_proj.norm.weight"])
    norm = (state["image_proj.norm.weight"], state["image_proj.norm.bias"])
    tokens = functional.layer_norm(tokens.unflatten(-1, (-1, width)), (width,), *norm)
    found = []
    for number in range(blocks):
        place = f"ip_adapter.{number}"
        key = (tokens @ state[f"{place}.to_k_ip.weight"].T).unflatten(-1, (-1, head_dim))
        size = (key.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        key = key / size * state[f"{place}.norm_ip_k.weight"]
        found.append((key.flatten(-2), tokens @ state[f"{place}.to_v_ip.weight"].T))
    return found
