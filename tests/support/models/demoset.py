"""The demo models in the host, sampled through the nodes, and how far a picture is from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..hosts.process import Host
from ..hosts.server import script

STEPS, CFG, SEED = 6, 3.0, 17
# What the references show: shape, its colour, the background's colour. One picture of each shape.
SHOWN = (
    ("circle", "red", "green"),
    ("square", "blue", "brown"),
    ("triangle", "yellow", "purple"),
    ("star", "pink", "black"),
    ("ring", "red", "cyan"),
    ("cross", "blue", "white"),
    ("diamond", "grey", "yellow"),
    ("moon", "green", "pink"),
)
FEW = 4  # of them, where colours are asked for


@dataclass(frozen=True, eq=False)
class Demo:
    """The demo set as the host's own loaders and the pack's give it."""

    host: Host
    tools: ModuleType
    model: Any
    clip: Any
    vae: Any
    vision: Any

    @cached_property
    def references(self) -> Tensor:
        """One picture per entry of SHOWN, (8, 128, 128, 3)."""
        return self.pictures(SHOWN)

    def pictures(self, shown: Sequence[tuple[str, str, str]]) -> Tensor:
        """One picture per shape, its colour and the background's, (n, 128, 128, 3)."""
        scenes = self.tools.world.scenes
        pictures = []
        for number, (shape, colour, background) in enumerate(shown):
            place = ((64.0, 64.0), 36.0, 0.0)
            item = scenes.Item(shape, colour, "plain", "medium", "centre", *place)
            scene = scenes.Scene(background, None, False, (item,))
            pictures.append(torch.from_numpy(scenes.render(scene, scenes.scene_rng(3, number))))
        return torch.stack(pictures).movedim(1, -1)

    def adapter(self, family: str) -> Any:
        """The shipped adapter of a family, loaded by the pack."""
        name = f"{self.tools.models.adapters.FILES[family]}.safetensors"
        (adapter,) = self.host.call("IPAdapterModelLoader", ipadapter_file=name)
        return adapter

    def shuffled(self, family: str) -> dict[str, dict[str, Tensor]]:
        """The same adapter with the numbers of every K' and V' in random order."""
        checkpoint = self.adapter(family).checkpoint
        g = torch.Generator().manual_seed(1)

        def shuffle(weight: Tensor) -> Tensor:
            order = torch.randperm(weight.numel(), generator=g)
            return weight.flatten()[order].view(weight.shape)

        layers = checkpoint.ip_adapter
        return {
            "image_proj": dict(checkpoint.image_proj),
            "ip_adapter": {key: shuffle(layers[key]) for key in layers},
        }

    def applied(self, adapter: Any, images: Tensor | None = None, **changes: Any) -> Any:
        """MODEL with one reference per latent (IPAdapter Batch)."""
        inputs = {
            "model": self.model,
            "ipadapter": adapter,
            "image": self.references[:FEW] if images is None else images,
            "clip_vision": self.vision,
            "weight": 1.0,
            "weight_type": "linear",
            "start_at": 0.0,
            "end_at": 1.0,
            "embeds_scaling": "V only",
            "encode_batch_size": 0,
        }
        (model,) = self.host.call("IPAdapterBatch", **{**inputs, **changes})
        return model

    def sample(
        self,
        model: Any = None,
        caption: str = "",
        count: int = FEW,
        control: tuple[Any, Tensor] | None = None,
        steps: int = STEPS,
    ) -> Tensor:
        """(count, 3, 128, 128), 0..1, always from the same noise.

        `control`: a loaded ControlNet and its images, one per sample, (count, 128, 128, 3).
        """
        (latent,) = self.host.call("EmptyLatentImage", width=128, height=128, batch_size=count)
        positive, negative = (
            self.host.call("CLIPTextEncode", clip=self.clip, text=text)[0] for text in (caption, "")
        )
        if control is not None:
            positive, negative = self.host.call(
                "ControlNetApplyAdvanced",
                positive=positive,
                negative=negative,
                control_net=control[0],
                image=control[1],
                strength=1.0,
                start_percent=0.0,
                end_percent=1.0,
            )
        (latent,) = self.host.call(
            "KSampler",
            model=model or self.model,
            seed=SEED,
            steps=steps,
            cfg=CFG,
            sampler_name="euler",
            scheduler="normal",
            positive=positive,
            negative=negative,
            latent_image=latent,
            denoise=1.0,
        )
        (images,) = self.host.call("VAEDecode", vae=self.vae, samples=latent)
        return images.clamp(0, 1).movedim(-1, 1)

    def figures(self, images: Tensor) -> dict[str, float]:
        """How near pictures come to the first references: distance of background and object,
        overlap of the silhouettes, share of the shapes that are recognised."""
        shown = SHOWN[: len(images)]
        to = self.references[: len(images)].movedim(-1, 1)
        return {
            "background": round(self.background_distance(images, to), 3),
            "object": round(self.object_distance(images, to), 3),
            "overlap": round(self.shape_overlap(images, to), 3),
            "shapes": self.shapes_recognised(images, shown),
        }

    def background_distance(self, images: Tensor, to: Tensor) -> float:
        """Mean difference of the frames' median colours, on a scale of 0 to 2."""
        colour = self.tools.world.scenes.background_colour
        pairs = zip(images, to, strict=True)
        return sum(float((colour(a) - colour(b)).abs().mean() * 2) for a, b in pairs) / len(to)

    def object_distance(self, images: Tensor, to: Tensor) -> float:
        """The same for the objects; a picture without one counts by its background."""
        tools = self.tools.world.scenes

        def colour(image: Tensor) -> Tensor:
            found = tools.object_colour(image)
            return tools.background_colour(image) if found is None else found

        pairs = zip(images, to, strict=True)
        return sum(float((colour(a) - colour(b)).abs().mean() * 2) for a, b in pairs) / len(to)

    def shape_overlap(self, images: Tensor, to: Tensor) -> float:
        """Mean overlap (IoU, 0..1) of the objects' silhouettes."""
        mask = self.tools.world.scenes.foreground
        total = 0.0
        for a, b in zip(images, to, strict=True):
            one, two = mask(a), mask(b)
            total += float((one & two).sum() / (one | two).sum().clamp(min=1))
        return total / len(to)

    def shapes_recognised(self, images: Tensor, shown: Sequence[tuple[str, str, str]]) -> float:
        """Share of the pictures whose silhouette fits the right shape best; chance is 1/8."""
        found = [self.tools.world.scenes.detected_shape(image) for image in images]
        return sum(name == one[0] for name, one in zip(found, shown, strict=True)) / len(shown)

    def far(self, image: Tensor, background: str) -> float:
        """Distance of one picture's background to a named colour."""
        scenes = self.tools.world.scenes
        return scenes.colour_error(scenes.background_colour(image), background)


def load_demo(host: Host) -> Demo:
    """Write the demo models into the host's folders and load them with the nodes."""
    tools = script("tools.demo_models").demoset()
    models = host.base / "models"
    with torch.inference_mode():
        tools.build.build(models)
    for family in tools.models.adapters.FILES:
        tools.models.adapters.write(family, models)
    checkpoint = tools.build.CHECKPOINT.name
    model, clip, vae = host.call("CheckpointLoaderSimple", ckpt_name=checkpoint)
    folder = tools.build.ENCODER.name
    (vision,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name=folder)
    return Demo(host, tools, model, clip, vae, vision)
