"""Graphs of nodes with inputs and outputs by name; `workflow_formats.py` makes them
files and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
SDXL = "sd_xl_base_1.0.safetensors"
SD35 = "sd3.5_large_fp8_scaled.safetensors"
FLUX, KONTEXT = "flux1-dev.safetensors", "flux1-dev-kontext_fp8_scaled.safetensors"
VIT_L, SIGLIP = "clip-vit-large-patch14.safetensors", "sigclip_vision_patch14_384.safetensors"
VIT_H = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
PLUS = "PLUS (high strength)"
NEGATIVE = "blurry, low quality"
SAMPLER = {
    "seed": 0,
    "steps": 25,
    "cfg": 6.0,
    "sampler_name": "dpmpp_2m",
    "scheduler": "karras",
}
# Flux.1 [dev] takes its guidance as a number in the prompt: the sampler's cfg is 1.
FLUX_SAMPLER = {**SAMPLER, "steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}


@dataclass(frozen=True)
class Link:
    """An output of a node, by its name."""

    node: int
    output: str


@dataclass
class Node:
    """A node of a graph: its class, and widget values and links by input name."""

    number: int
    kind: str
    title: str
    inputs: dict[str, Any]
    collapsed: bool = False  # only its title is to be seen

    def __getitem__(self, output: str) -> Link:
        return Link(self.number, output)


# What has outputs by name: a node, or several that a graph takes for one.
Outputs = Node | Mapping[str, Link]


@dataclass
class Graph:
    """A workflow: a name, a note and a title for its reader, and its nodes.

    file: the template's name without suffix. The page shows nothing else, and hosts list files in
    no order: a number, then the title. base: the name of a base that none of the trained models
    here is; empty where one is.
    """

    name: str
    note: str = ""
    nodes: list[Node] = field(default_factory=list)
    title: str = ""
    file: str = ""
    base: str = ""

    def add(self, kind: str, title: str = "", /, **inputs: Any) -> Node:
        """Add a node."""
        node = Node(len(self.nodes) + 1, kind, title, inputs)
        self.nodes.append(node)
        return node

    def once(self, kind: str, /, **inputs: Any) -> Node:
        """The node of this class with these inputs, added unless there is one."""
        same = (node for node in self.nodes if (node.kind, node.inputs) == (kind, inputs))
        return next(same, None) or self.add(kind, **inputs)

    def picture(self, title: str, file: str = "example.png") -> Link:
        """A picture from the input folder."""
        return self.add("LoadImage", title, image=file)["IMAGE"]


@dataclass
class Base:
    """What every graph has around its image prompt: checkpoint, prompts, latents,
    the sampler's settings."""

    graph: Graph
    checkpoint: Outputs
    positive: Link
    negative: Link
    latent: Link
    sampler: Mapping[str, Any] = field(default_factory=lambda: SAMPLER)
    # What the unified loader gets, if not the checkpoint's.
    model: Link | None = None

    @classmethod
    def of(
        cls,
        graph: Graph,
        prompt: str,
        checkpoint: str = SD15,
        negative: str = NEGATIVE,
        sampler: Mapping[str, Any] = SAMPLER,
        **latent: Any,
    ) -> Base:
        loader = graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        texts = {"Prompt": prompt, "Negative prompt": negative}
        positive, avoided = (
            graph.add("CLIPTextEncode", title, text=text, clip=loader["CLIP"])["CONDITIONING"]
            for title, text in texts.items()
        )
        side = 512 if checkpoint == SD15 else 1024
        size = {"width": side, "height": side, "batch_size": 1, **latent}
        graph.base = "SD3.5" if checkpoint == SD35 else ""
        empty = "EmptySD3LatentImage" if graph.base else "EmptyLatentImage"
        latents = graph.add(empty, **size)["LATENT"]
        return cls(graph, loader, positive, avoided, latents, sampler)

    @classmethod
    def flux(cls, graph: Graph, prompt: str, model: str = FLUX, guidance: float = 3.5) -> Base:
        """The same around a Flux.1: a file for each part, no negative prompt."""
        graph.base = "Flux.1 Kontext" if model == KONTEXT else "Flux.1"
        loaders = {
            "MODEL": graph.add("UNETLoader", unet_name=model),
            "CLIP": graph.add(
                "DualCLIPLoader",
                clip_name1="clip_l.safetensors",
                clip_name2="t5xxl_fp8_e4m3fn_scaled.safetensors",
                type="flux",
            ),
            "VAE": graph.add("VAELoader", vae_name="ae.safetensors"),
        }
        parts = {output: loader[output] for output, loader in loaders.items()}
        text = graph.add("CLIPTextEncode", "Prompt", text=prompt, clip=parts["CLIP"])
        none = graph.add("ConditioningZeroOut", conditioning=text["CONDITIONING"])
        guided = graph.add("FluxGuidance", conditioning=text["CONDITIONING"], guidance=guidance)[
            "CONDITIONING"
        ]
        size = {"width": 1024, "height": 1024, "batch_size": 1}
        latents = graph.add("EmptySD3LatentImage", **size)["LATENT"]
        return cls(graph, parts, guided, none["CONDITIONING"], latents, FLUX_SAMPLER)

    @cached_property
    def loader(self) -> Node:
        """The unified loader that most graphs use."""
        model = self.model or self.checkpoint["MODEL"]
        return self.graph.add("IPAdapterUnifiedLoader", preset=PLUS, model=model)

    def files(self, adapter: str) -> dict[str, Link]:
        """What an Apply node takes where the files are named, for the page to offer them."""
        vision = self.graph.add("CLIPVisionLoader", clip_name=VIT_H)["CLIP_VISION"]
        loaded = self.graph.add("IPAdapterModelLoader", ipadapter_file=adapter)["IPADAPTER"]
        model = self.model or self.checkpoint["MODEL"]
        return {"model": model, "ipadapter": loaded, "clip_vision": vision}

    def apply(self, kind: str, title: str = "", /, **inputs: Any) -> Node:
        """An Apply node, connected to the unified loader unless `inputs` say otherwise."""
        if "ipadapter" not in inputs:
            inputs["ipadapter"] = self.loader["ipadapter"]
        inputs.setdefault("model", self.loader["model"])
        return self.graph.add(kind, title, **inputs)

    def prompted(self, adapter: str, encoder: str, image: Link, **inputs: Any) -> Node:
        """IPAdapter Advanced with files of these names; each loader is there once."""
        once = self.graph.once
        vision = once("IPAdapterImageEncoderLoader", clip_vision_name=encoder)
        files = {
            "ipadapter": once("IPAdapterModelLoader", ipadapter_file=adapter)["IPADAPTER"],
            "clip_vision": vision["CLIP_VISION"],
        }
        given = {"model": self.checkpoint["MODEL"], **files, "image": image, **inputs}
        return self.graph.add("IPAdapterAdvanced", **given)

    def decoded(self, patched: Outputs, **sampler: Any) -> Link:
        """The IMAGE that a node's MODEL samples."""
        given = {
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": self.latent,
            "model": patched["MODEL"],
        }
        samples = self.graph.add("KSampler", **{**self.sampler, **given, **sampler})
        vae = self.checkpoint["VAE"]
        decoded = self.graph.add("VAEDecode", samples=samples["LATENT"], vae=vae)
        return decoded["IMAGE"]

    def save(self, patched: Outputs, title: str = "", **sampler: Any) -> Link:
        """Sample a node's MODEL and save the picture; returns it."""
        prefix = (title or self.graph.name).replace(" ", "_")
        image = self.decoded(patched, **sampler)
        self.graph.add("SaveImage", title, images=image, filename_prefix=prefix)
        return image

    def compare(self, **inputs: Any) -> None:
        """Save the same picture without and with an image prompt, whose loaders are given."""
        given = {"model": self.checkpoint["MODEL"], "weight": 0.8, **inputs}
        patched = self.graph.add("IPAdapterAdvanced", **given)
        self.save(self.checkpoint, "without the image prompt")
        self.save(patched, "with the image prompt")
