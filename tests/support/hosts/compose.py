"""A tiny MODEL, a prompt for it, and two ways to sample: with the pack, and with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..models.unets import TINY_SD15, random_adapter
from ..references.sampler import Naive, NaiveAdapter, naive
from .applied import applied, injected

TOLERANCE = 1e-5
TOKENS = 4
# Widgets of SkipLayerGuidanceDiT that leave out the second layer of each kind, all the time.
SKIPPED = {
    "double_layers": "1",
    "single_layers": "1",
    "scale": 3.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "rescaling_scale": 0.0,
}


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> Tensor:
    """Text states of one prompt: (1, 77, dim)."""
    return seeded(seed, 1, 77, TINY_SD15.context_dim)


def conditioning(states: Tensor, **options: Any) -> list[Any]:
    """A CONDITIONING as the host's text encoder makes it."""
    return [[states, {"pooled_output": None, **options}]]


@dataclass
class Prompt:
    """An image prompt for both sides: tokens (items, tokens, dim), weights, mask, range."""

    seed: int = 3
    items: int = 1
    weights: tuple[float, ...] = (0.8,)
    mask: Tensor | None = None
    start_at: float = 0.0
    end_at: float = 1.0

    @cached_property
    def state(self) -> Any:
        return random_adapter(TINY_SD15, seed=self.seed)

    @cached_property
    def cond(self) -> Tensor:
        return seeded(self.seed + 100, self.items, TOKENS, TINY_SD15.context_dim)

    @cached_property
    def uncond(self) -> Tensor:
        return 0.3 * seeded(self.seed + 200, 1, TOKENS, TINY_SD15.context_dim)

    @property
    def when(self) -> dict[str, Any]:
        """Fields of an ApplyRange."""
        return {"start_at": self.start_at, "end_at": self.end_at, "mask": self.mask}


@dataclass
class Scene:
    """Everything that a sampling needs, minus the image prompts."""

    model: Any
    positive: list[Any] = field(default_factory=lambda: conditioning(text(1)))
    negative: list[Any] = field(default_factory=lambda: conditioning(text(2)))
    batch: int = 1
    cfg: float = 4.0
    steps: int = 2
    height: int = 16
    width: int = 16
    guider: Callable[[Any, Scene], Any] | None = None
    reference: dict[str, Any] = field(default_factory=dict)  # what the reference must know of it
    latent_seed: int = 5
    scheduler: str = "normal"

    def but(self, **changes: Any) -> Scene:
        return replace(self, **changes)


def default_guider(model: Any, scene: Scene) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(scene.positive, scene.negative)
    guider.set_cfg(scene.cfg)
    return guider


def sample(scene: Scene, model: Any = None) -> Tensor:
    """Latents after a few Euler steps, from seeded noise."""
    import comfy.samplers

    model = scene.model if model is None else model
    noise = seeded(scene.latent_seed, scene.batch, 4, scene.height, scene.width)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scene.scheduler, scene.steps)
    guider = (scene.guider or default_guider)(model, scene)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)  # ToMe and HyperTile draw from the global generator
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=1)


def naive_adapter(scene: Scene, prompt: Prompt, **changes: Any) -> NaiveAdapter:
    """The reference's side of a prompt."""
    sampling = scene.model.get_model_object("model_sampling")
    first, last = (sampling.percent_to_sigma(at) for at in (prompt.start_at, prompt.end_at))
    weights = prompt.weights[0] if len(prompt.weights) == 1 else prompt.weights
    adapter = NaiveAdapter(prompt.state, prompt.cond, prompt.uncond, weights, prompt.mask)
    # Single precision: what a step's noise level is in.
    adapter.active = lambda sigma: (
        (prompt.start_at == 0.0 or sigma <= first or math.isclose(sigma, first, rel_tol=1e-6))
        and (prompt.end_at == 1.0 or (sigma > last and not math.isclose(sigma, last, rel_tol=1e-6)))
        and prompt.start_at < prompt.end_at
    )
    return replace(adapter, **changes)


def with_reference(scene: Scene, *prompts: Prompt | NaiveAdapter, **known: Any) -> Tensor:
    """What the sampling should give."""
    known = {"positive": [entry[0] for entry in scene.positive], **scene.reference, **known}
    adapters = [
        naive_adapter(scene, prompt) if isinstance(prompt, Prompt) else prompt for prompt in prompts
    ]
    model = known.pop("model", scene.model)
    with naive(model.model.diffusion_model, Naive(adapters, **known)):
        return sample(scene, model)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@dataclass
class Pack:
    """The pack's side."""

    host: Any

    def module(self, name: str) -> Any:
        return self.host.module(f"ipadapter.{name}")

    def parts(self, prompt: Prompt) -> tuple[Any, Any, Any]:
        """The adapter, the image prompt and the plan of a prompt."""
        checkpoint = self.module("adapters.checkpoint").checkpoint_from_dict(
            prompt.state, "random adapter"
        )
        adapter = self.module("adapters.adapter").Adapter.from_checkpoint(checkpoint)
        image = self.module("adapters.prompt").ImagePrompt(prompt.cond, prompt.uncond)
        return adapter, image, self.module("attention.weight_types").Weighting(prompt.weights)

    def hooks(self, model: Any, prompt: Prompt, before: Any = None) -> Any:
        """HOOKS that carry a prompt."""
        injections = injected(self.module, model, *self.parts(prompt), **prompt.when)
        return self.module("host.hooks").hook_group(injections, before)

    def apply(self, model: Any, *prompts: Prompt) -> Any:
        """Patch a MODEL with prompts, one after another."""
        for prompt in prompts:
            model = applied(self.module, model, *self.parts(prompt), **prompt.when)
        return model
