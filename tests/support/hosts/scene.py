"""A tiny MODEL, adapter and image encoder on the real host, and sampling with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import transformers
from ..models.unets import Geometry, build_model, build_reference, random_adapter
from ..models.vision import tiny_clip_vision
from ..references.interface import defaults

STEPS = 2


@dataclass(frozen=True, eq=False)
class Scene:
    """What a graph has before the Apply node. The text conds are (text states, extra) pairs.

    channels: of the latents. frames: 1 for bases of videos. weight_types: some that the base has.
    attention: in the names of matrices that a LoRA may change.
    """

    host: Any
    model: Any
    adapter: Any
    clip_vision: Any
    positive: list[Any]
    negative: list[Any]
    channels: int = 4
    weight_types: tuple[str, ...] = ("linear", "style transfer precise", "style and composition")
    attention: str = ".attn2."
    frames: tuple[int, ...] = ()

    @classmethod
    def build(cls, host: Any, geometry: Geometry, plus: bool = False) -> Scene:
        """Seeded random weights throughout, strong enough that a prompt is seen in the latents."""
        clip_vision = tiny_clip_vision(projected=48, hidden=64)
        adapter = random_adapter(geometry, plus=plus, embed_dim=64 if plus else 48)
        conds = [_text(geometry, seed) for seed in (1, 2)]
        model = build_model(geometry, build_reference(geometry).state_dict())
        return cls(host, model, adapter, clip_vision, conds[0], conds[1])

    @classmethod
    def of_transformer(
        cls, host: Any, geometry: transformers.Geometry, state: Any, model: Any = None
    ) -> Scene:
        """The same for a tiny transformer. state: of an adapter for it, as its file has it. model:
        one of this geometry instead of a new one."""
        module = host.module
        checkpoint = module("ipadapter.adapters.checkpoint").checkpoint_from_dict(state, "random")
        adapter = module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)
        conds = [_transformer_text(geometry, seed) for seed in (1, 2)]
        return cls(
            host,
            model or transformers.build_pair(geometry).model,
            adapter,
            tiny_clip_vision(projected=48, hidden=48),
            conds[0],
            conds[1],
            geometry.channels,
            ("linear", "ease in", "weak middle"),
            "attn.qkv",
            (1,) if geometry.kind.startswith("Cosmos") else (),
        )

    @property
    def latents(self) -> Tensor:
        """Empty latents for one picture."""
        return torch.zeros(1, self.channels, *self.frames, 16, 16)

    def apply(self, model: Any = None, image: Tensor | None = None, **given: Any) -> Any:
        """The MODEL that IPAdapter Advanced makes."""
        inputs = self._inputs(model or self.model, image)
        return self.host.call("IPAdapterAdvanced", **{**inputs, **given})[0]

    def hooked(self, cond: Any, **given: Any) -> Any:
        """A text cond that carries the same image prompt, as IPAdapter Hook makes it."""
        inputs = self._inputs(self.model, None)
        (hooks,) = self.host.call("IPAdapterHook", **{**inputs, **given})
        return self.host.call(
            "ConditioningSetProperties",
            cond_NEW=cond,
            strength=1.0,
            set_cond_area="default",
            hooks=hooks,
        )[0]

    def _inputs(self, model: Any, image: Tensor | None) -> dict[str, Any]:
        return {
            **defaults("IPAdapterAdvanced"),
            "model": model,
            "ipadapter": self.adapter,
            "image": picture(1) if image is None else image,
            "clip_vision": self.clip_vision,
        }

    def sample(self, model: Any = None, batch: int = 1, cfg: float = 4.0, **given: Any) -> Tensor:
        """Latents that KSampler makes, (batch, channels, 16, 16)."""
        values = {
            "seed": 3,
            "steps": STEPS,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": {"samples": torch.cat([self.latents] * batch)},
            "denoise": 1.0,
        }
        (out,) = self.host.call(
            "KSampler", model=model or self.model, cfg=cfg, **{**values, **given}
        )
        return out["samples"]

    def maps(self, model: Any) -> Tensor:
        """Where image prompts act in every block of a MODEL's sampling, (1, 16, 16)."""
        model, record = self.host.call(
            "IPAdapterRecordAttention", model=model, show="effect", blocks="all"
        )
        self.sample(model)
        image = torch.zeros(1, 16, 16, 3)
        _, maps = self.host.call("IPAdapterAttentionMap", record=record, image=image, opacity=0.5)
        return maps


def picture(seed: int, images: int = 1) -> Tensor:
    """A seeded random IMAGE of another size than the encoder's."""
    return torch.rand(images, 40, 48, 3, generator=torch.Generator().manual_seed(seed))


def _text(geometry: Geometry, seed: int) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(1, 77, geometry.context_dim, generator=g)
    return [[states, {"pooled_output": torch.randn(1, 1280, generator=g)}]]


def _transformer_text(geometry: transformers.Geometry, seed: int) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(1, 9, geometry.text_dim, generator=g)
    pooled = torch.randn(1, geometry.pooled, generator=g)
    return [[states, {"pooled_output": pooled, "guidance": 3.5}]]


def contents(value: Any) -> Any:
    """A deep picture of host options: containers by content, everything else by identity."""
    if isinstance(value, dict):
        return {key: contents(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [contents(inner) for inner in value]
    return id(value)


def snapshot(model: Any) -> dict[str, Any]:
    """All that a ModelPatcher carries besides the network."""
    names = (
        "model_options",
        "wrappers",
        "callbacks",
        "patches",
        "object_patches",
        "attachments",
        "additional_models",
        "injections",
        "hook_patches",
        "weight_wrapper_patches",
    )
    return {name: contents(getattr(model, name)) for name in names if hasattr(model, name)}
