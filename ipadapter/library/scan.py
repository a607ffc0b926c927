"""Model files of a folder and what each of them is, by content, from headers only."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.checkpoint import checkpoint_from_tensors
from ..adapters.spec import AdapterSpec, identify
from ..adapters.vision import ENCODERS, EmbedSource, encoder_name
from ..errors import plain_text
from ..files.kinds import HOME_FOLDERS, OTHER_METHODS, Kind, kind_of
from ..files.tensors import Shape, TensorMap, open_tensor_file

EXTENSIONS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")
_REMEMBERED = 4096
HEAD = "vision_model.head.probe"  # of SigLIP, in place of a class token and its projection


@dataclass(frozen=True)
class EncoderFacts:
    """An image encoder's dimensions."""

    hidden: int
    """Width of the hidden states."""
    projected: int
    """Width of image_embeds; 0 if the file has no projection (SigLIP: no pooling head), so that it
    cannot give image_embeds."""
    image_size: int
    patch: int
    openclip: bool
    siglip: bool = False

    def width(self, source: EmbedSource) -> int:
        """Width of what a projector with this source would get."""
        return self.projected if source.output is EmbedSource.POOLED else self.hidden

    @property
    def summary(self) -> str:
        """One line for messages."""
        name = encoder_name(EmbedSource.HIDDEN, self.hidden)
        if self.hidden == 1024:  # two known encoders of this width; the image size tells them apart
            name = f"ViT-L/14 at {self.image_size} px (1024)"
        projected = (
            f"image_embeds {self.projected}"
            if self.projected
            else f"no {self.needed.rpartition('.')[0]}, so no image_embeds"
        )
        return f"{name}, {self.image_size} px, {projected}"

    @property
    def needed(self) -> str:
        """The first of the tensors that make image_embeds."""
        return HEAD if self.siglip else "visual_projection.weight"


def why_not_width(facts: EncoderFacts, spec: AdapterSpec) -> str:
    """Why an encoder's output is not what an adapter takes; empty if it is."""
    if spec.embed_source is EmbedSource.POOLED and not facts.projected:
        return f"has no {facts.needed}, so it cannot give image_embeds"
    if facts.width(spec.embed_source) == spec.embed_dim:
        return ""
    return f"needs {spec.encoder_name}, got {facts.summary}"


@dataclass(frozen=True)
class LoraFacts:
    """A LoRA's reach: FaceID's cover every attention projection of the UNet and nothing else."""

    only_attention: bool
    rank: int
    base: str


@dataclass(frozen=True)
class ModelFile:
    """What a file is. `problem` is set where it cannot be read or is damaged."""

    kind: Kind = Kind.UNKNOWN
    spec: AdapterSpec | None = None
    encoder: EncoderFacts | None = None
    lora: LoraFacts | None = None
    problem: str = ""

    @property
    def summary(self) -> str:
        """One line for messages."""
        facts = self.spec or self.encoder
        if self.problem:
            return self.problem
        if facts:
            return f"{self.kind.value}: {facts.summary}"
        if self.lora and self.lora.only_attention:
            return f"{self.kind.value} for the attention of {self.lora.base}, rank {self.lora.rank}"
        folder, other = HOME_FOLDERS.get(self.kind), OTHER_METHODS.get(self.kind)
        why = f", which this pack cannot use: {other}" if other else ""
        return f"{self.kind.value}{why}" + (f", which belongs in {folder}" if folder else "")


@dataclass(frozen=True)
class FoundFile:
    """A file of a model folder. What it is gets found out when asked for, and is remembered."""

    path: Path
    name: str
    """Path below the folder that was searched, as the host's lists have it."""

    @property
    def contents(self) -> ModelFile:
        """What the file is; an unreadable file has `problem` set."""
        return _MEMORY.contents(self.path)


@dataclass(frozen=True)
class ModelFolder:
    """The model files below some folders."""

    folders: tuple[Path, ...]
    files: tuple[FoundFile, ...]

    def __iter__(self) -> Iterator[FoundFile]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def scan(folders: Iterable[Path | str]) -> ModelFolder:
    """List the model files below the folders, subfolders included, without opening them."""
    roots = tuple(Path(folder) for folder in folders)
    files: dict[str, FoundFile] = {}
    for root in roots:
        for parent, subfolders, names in os.walk(root, followlinks=True):
            subfolders.sort()
            for name in sorted(names):
                if name.lower().endswith(EXTENSIONS):
                    path = os.path.join(parent, name)
                    relative = os.path.relpath(path, root)
                    files.setdefault(relative, FoundFile(Path(path), relative))
    return ModelFolder(roots, tuple(files.values()))


def read_contents(path: Path) -> ModelFile:
    """Find out what a file is from its header; never raises for what the file contains."""
    try:
        opened = open_tensor_file(path)
    except (ValueError, OSError) as error:
        return ModelFile(problem=plain_text(error))
    return contents_of(opened.tensors, path.name)


def contents_of(tensors: TensorMap, name: str) -> ModelFile:
    """What a set of tensors is; `name` is for messages and FaceID Plus' default version."""
    shapes = tensors.shapes()
    kind = kind_of(shapes)
    try:
        if kind is Kind.ADAPTER:
            parts = checkpoint_from_tensors(tensors, name)
            spec = identify(parts.image_proj.shapes(), parts.ip_adapter.shapes(), name)
            return ModelFile(kind, spec=spec)
        if kind is Kind.CLIP_VISION:
            return ModelFile(kind, encoder=_transformers_encoder(shapes))
        if kind is Kind.OPENCLIP and "visual.conv1.weight" in shapes:
            return ModelFile(kind, encoder=_openclip_encoder(shapes))
    except (ValueError, KeyError, IndexError) as error:
        return ModelFile(kind, problem=plain_text(error) or f"{name} is damaged")
    return ModelFile(kind, lora=_lora(shapes) if kind is Kind.LORA else None)


def _transformers_encoder(shapes: Mapping[str, Shape]) -> EncoderFacts:
    embeddings = "vision_model.embeddings."
    class_tokens = int(f"{embeddings}class_embedding" in shapes)
    facts = _encoder(
        shapes[f"{embeddings}patch_embedding.weight"],
        shapes[f"{embeddings}position_embedding.weight"][0] - class_tokens,
        shapes.get("visual_projection.weight", (0,))[0],
        openclip=False,
    )
    if class_tokens:
        return facts
    return replace(facts, projected=shapes.get(HEAD, (0,))[-1], siglip=True)


def _openclip_encoder(shapes: Mapping[str, Shape]) -> EncoderFacts:
    return _encoder(
        shapes["visual.conv1.weight"],
        shapes["visual.positional_embedding"][0] - 1,
        shapes.get("visual.proj", (0,))[-1],
        openclip=True,
    )


def _encoder(patches: Shape, positions: int, projected: int, openclip: bool) -> EncoderFacts:
    if len(patches) != 4:
        raise ValueError(f"the patch embedding has the shape {patches}, expected four dimensions")
    hidden, patch, side = patches[0], patches[-1], math.isqrt(positions)
    # A picture need not be whole patches: of SigLIP's 384 pixels the last 6 are in none.
    known = (one.image_size for one in ENCODERS if (one.hidden, one.patch) == (hidden, patch))
    size = next((size for size in known if size // patch == side), side * patch)
    return EncoderFacts(hidden, projected, size, patch, openclip)


_LORA_DOWN = ("lora_down.", "lora.down.", "lora_A.")
_TEXT_WIDTHS = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}


def _lora(shapes: Mapping[str, Shape]) -> LoraFacts:
    downs = {key: shape for key, shape in shapes.items() if any(part in key for part in _LORA_DOWN)}
    if not downs or any(len(shape) < 2 for shape in downs.values()):
        return LoraFacts(False, 0, "an unknown model")
    widths = {shape[1] for key, shape in downs.items() if "attn2" in key and "to_k" in key}
    base = _TEXT_WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""
    only_attention = bool(base) and all("attn1" in key or "attn2" in key for key in downs)
    rank = max(shape[0] for shape in downs.values())
    return LoraFacts(only_attention, rank, base or "an unknown model")


class _Memory:
    """Contents by path, size and modification time; the oldest entries go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[str, int, int], ModelFile] = OrderedDict()
        self._lock = threading.Lock()

    def contents(self, path: Path) -> ModelFile:
        try:
            stat = os.stat(path)
        except OSError as error:
            return ModelFile(problem=f"{path.name} cannot be read ({error.strerror})")
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        contents = read_contents(path)
        with self._lock:
            self._known[key] = contents
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return contents


_MEMORY = _Memory(_REMEMBERED)
