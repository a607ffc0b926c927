"""The official training recipe in plain `diffusers`, and its gradients under this pack's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.unets import Pair


@dataclass(frozen=True, eq=False)
class Step:
    """What one optimiser step made: loss, gradients and new weights, by the standard file keys."""

    loss: float
    gradients: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


def official_step(
    pair: Pair,
    state: Mapping[str, Tensor],
    data: Any,
    draw: Any,
    prediction: str = "epsilon",
    weighting: str = "plain",
) -> Step:
    """One step of the official script: noise, frozen UNet with IP processors, MSE, AdamW.

    state: a new adapter's tensors. data: the pack's TrainingSet, of whose values the drops are
    applied here; draw: the random choices. prediction: a scheduler's, in `diffusers`' words.
    """
    from diffusers import DDPMScheduler

    unet = load_adapter(pair, state)
    unet.requires_grad_(False)
    layers = trainable(unet, pair)
    for parameter in layers.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(layers.values(), lr=1e-4, weight_decay=1e-2)

    embeds = data.features[draw.samples].clone()
    embeds[draw.drop_image] = data.no_features.clone()
    text = data.prompts.states[draw.samples].clone()
    text[draw.drop_text] = data.prompts.empty.clone()
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    latents = data.latents[draw.samples]
    noisy = scheduler.add_noise(latents, draw.noise, draw.timesteps)
    rows = torch.where(draw.drop_text, 0, draw.samples)
    extra = pair.extra.get("added_cond_kwargs", {})
    added = {
        **{key: value[rows] for key, value in extra.items()},
        "image_embeds": [embeds[:, None]],
    }
    predicted = unet(noisy, draw.timesteps, text, added_cond_kwargs=added).sample
    target = draw.noise.float()
    if prediction == "v_prediction":
        target = scheduler.get_velocity(latents, draw.noise, draw.timesteps)
    loss = nn.functional.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3))
    alphas = scheduler.alphas_cumprod[draw.timesteps]
    loss = (loss * _weights(alphas / (1 - alphas), prediction, weighting)).mean()
    loss.backward()
    gradients = {key: p.grad.clone() for key, p in layers.items() if p.grad is not None}
    optimizer.step()
    weights = {key: p.detach().clone() for key, p in layers.items()}
    return Step(loss.item(), merged(gradients), merged(weights))


def _weights(snr: Tensor, prediction: str, weighting: str) -> Tensor:
    """Min-SNR as the official script has it; the picture's error, from the noise's."""
    offset = 1 if prediction == "v_prediction" else 0
    if weighting == "min-SNR":
        return torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0] / (snr + offset)
    if weighting == "picture":
        return snr.clamp(0.3, 5.0) / (snr + offset)
    return torch.ones_like(snr)


def load_adapter(pair: Pair, state: Mapping[str, Tensor]) -> Any:
    """The pair's reference with an adapter file's tensors loaded by `diffusers`."""
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        half, _, name = key.partition(".")
        nested[half][name] = value.clone()
    pair.reference._load_ip_adapter_weights([nested], low_cpu_mem_usage=False)
    return pair.reference


def trainable(unet: Any, pair: Pair) -> dict[str, nn.Parameter]:
    """The adapter's parameters in `diffusers` by the standard keys (split ones have a suffix)."""
    named: dict[str, nn.Parameter] = {}
    processors = [p for p in unet.attn_processors.values() if hasattr(p, "to_k_ip")]
    for number, processor in enumerate(processors):
        for part in ("to_k_ip", "to_v_ip"):
            weight = getattr(processor, part)[0].weight
            named[f"ip_adapter.{2 * number + 1}.{part}.weight"] = weight
    (projector,) = unet.encoder_hid_proj.image_projection_layers
    for name, parameter in projector.named_parameters():
        named[f"image_proj.{standard_name(name)}"] = parameter
    return named


_NAMES = (
    ("image_embeds.", "proj."),
    (".ln0.", ".0.norm1."),
    (".ln1.", ".0.norm2."),
    (".attn.to_k.", ".0.to_kv.0."),
    (".attn.to_v.", ".0.to_kv.1."),
    (".attn.to_out.0.", ".0.to_out."),
    (".attn.", ".0."),
    (".ff.0.", ".1.0."),
    (".ff.1.net.0.proj.", ".1.1."),
    (".ff.1.net.2.", ".1.3."),
)


def standard_name(name: str) -> str:
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values of a resampler as the one matrix that the files hold."""
    whole = {key: value for key, value in tensors.items() if ".to_kv." not in key}
    for key, value in tensors.items():
        if ".to_kv.0." in key:
            other = tensors[key.replace(".to_kv.0.", ".to_kv.1.")]
            whole[key.replace(".to_kv.0.", ".to_kv.")] = torch.cat((value, other))
    return whole
