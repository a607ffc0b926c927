"""Graphs in the format that POST /prompt takes, built node by node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Link = list[Any]  # [node id, output number]


@dataclass(frozen=True)
class ApiNode:
    """A node of a graph; `node[0]` is its first output."""

    number: str

    def __getitem__(self, output: int) -> Link:
        return [self.number, output]


@dataclass
class ApiGraph:
    """Nodes by id, as the server takes them, and a name for each that has one."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, title: str = "", /, **inputs: Any) -> ApiNode:
        """Add a node; links among its inputs are outputs of nodes added before."""
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": inputs}
        self.titles[number] = title or kind
        return ApiNode(number)


@dataclass(frozen=True)
class Sampling:
    """What all pictures of a run share: side in pixels, pictures at once, and the sampler's."""

    size: int
    samples: int = 1
    steps: int = 20
    cfg: float = 6.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0


class Studio:
    """A graph with its checkpoint, image encoder and adapters; what it samples is saved."""

    def __init__(self, checkpoint: str, encoder: str, sampling: Sampling) -> None:
        self.graph = ApiGraph()
        self.sampling = sampling
        self.checkpoint = self.graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        self.encoder = self.graph.add("IPAdapterImageEncoderLoader", clip_vision_name=encoder)
        self._made: dict[tuple[str, str], ApiNode] = {}

    @property
    def model(self) -> Link:
        """The checkpoint's MODEL."""
        return self.checkpoint[0]

    def once(self, kind: str, name: str, **inputs: Any) -> ApiNode:
        """A node that is added the first time it is asked for under `name`."""
        if (kind, name) not in self._made:
            self._made[kind, name] = self.graph.add(kind, **inputs)
        return self._made[kind, name]

    def picture(self, file: str) -> Link:
        """A file of the input folder, as IMAGE."""
        return self.once("LoadImage", file, image=file)[0]

    def text(self, words: str) -> Link:
        """A caption, as CONDITIONING."""
        return self.once("CLIPTextEncode", words, text=words, clip=self.checkpoint[1])[0]

    def apply(self, adapter: str, image: Link, model: Link | None = None, **inputs: Any) -> Link:
        """MODEL with an image prompt (IPAdapter Advanced); its defaults, but for `inputs`."""
        given: Mapping[str, Any] = {
            "model": model or self.model,
            "ipadapter": self.once("IPAdapterModelLoader", adapter, ipadapter_file=adapter)[0],
            "clip_vision": self.encoder[0],
            "image": image,
            "weight": 1.0,
            "weight_type": "linear",
            "combine_embeds": "concat",
            "start_at": 0.0,
            "end_at": 1.0,
            "embeds_scaling": "V only",
        }
        return self.graph.add("IPAdapterAdvanced", **{**given, **inputs})[0]

    def save(
        self,
        title: str,
        model: Link,
        positive: Link,
        negative: Link | None = None,
        prefix: str = "picture",
    ) -> None:
        """Sample a MODEL and save what comes out, under a title."""
        s = self.sampling
        latent = self.once(
            "EmptyLatentImage", "", width=s.size, height=s.size, batch_size=s.samples
        )
        sampled = self.graph.add(
            "KSampler",
            title,
            model=model,
            seed=s.seed,
            steps=s.steps,
            cfg=s.cfg,
            sampler_name=s.sampler,
            scheduler=s.scheduler,
            positive=positive,
            negative=negative or self.text(""),
            latent_image=latent[0],
            denoise=1.0,
        )
        decoded = self.graph.add("VAEDecode", samples=sampled[0], vae=self.checkpoint[2])
        self.graph.add("SaveImage", title, images=decoded[0], filename_prefix=prefix)
