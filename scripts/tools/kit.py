"""The models that the demo's sheet is drawn with: its own, or those in a user's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .demo_models import CHECKPOINT, ENCODER, SIZE, STANDARD
from .environment import SetUpError
from .graph import NEGATIVE, Graph
from .graph import SAMPLER as FULL
from .pack import pack_module

TEXT = "a blue star on a green background"
SAMPLER = {"seed": 0, "steps": 12, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
OWN_TEXT = "a house by a lake"
UNET = "model.diffusion_model."
PARTS = ("input_blocks", "middle_block", "output_blocks")
Pairs = Iterator[tuple[Any, Any]]
SIDES = {768: 512, 1024: 768}  # of a picture, by the width of the text; larger ones: 1024


@dataclass(frozen=True)
class Kit:
    """Models with the words, size (pixels) and sampler that suit them. names: by the demo's file
    name the one to load instead. extras: whether there are a ControlNet, a LoRA and words."""

    text: str = TEXT
    negative: str = ""  # the demo's models know no such words
    side: int = SIZE
    sampler: Mapping[str, Any] = field(default_factory=lambda: SAMPLER)
    names: Mapping[str, str] = field(default_factory=dict)
    extras: bool = True

    def fitted(self, graph: Graph) -> Graph:
        """A graph with the names of these models."""
        for node in graph.nodes:
            for name, value in node.inputs.items():
                if isinstance(value, str):
                    node.inputs[name] = self.names.get(value, value)
        return graph


def own_kit(folder: Path, checkpoint: str | None = None) -> Kit:
    """Models of the user's, found by what is in the files: a checkpoint, an adapter of its shape,
    and the image encoder that this one needs. SetUpError: there are none; it says what is there."""
    scan = pack_module("library.scan")
    folders = {name: folder / name for name in ("checkpoints", "ipadapter", "clip_vision")}
    found = {name: list(scan.scan([path])) for name, path in folders.items()}
    if checkpoint and checkpoint not in (file.name for file in found["checkpoints"]):
        raise SetUpError(_missing("checkpoint", f"{checkpoint} in", folders["checkpoints"], found))
    for file in found["checkpoints"]:
        if checkpoint in (None, file.name):
            widths, context = unet_of(file.path)
            for adapter, encoder in _fitting(found, widths, context):
                names = {CHECKPOINT: file.name, STANDARD: adapter.name}
                names[ENCODER] = _listed(encoder.path, folders["clip_vision"])
                side = SIDES.get(context, 1024)
                return Kit(OWN_TEXT, NEGATIVE, side, FULL, names, extras=False)
    expected = "a checkpoint, an adapter for it and its image encoder in"
    raise SetUpError(_missing("models that belong together", expected, folder, found))


def _fitting(found: Mapping[str, Sequence[Any]], widths: Sequence[int], context: int) -> Pairs:
    """Adapters for a UNet of these widths, each with the encoders that it can be given."""
    why_not = pack_module("library.scan").why_not_width
    for adapter in _plain_first(found["ipadapter"]):
        spec = adapter.contents.spec
        if (Counter(spec.layer_widths), spec.token_dim) == (Counter(widths), context):
            for encoder in found["clip_vision"]:
                if (facts := encoder.contents.encoder) and not why_not(facts, spec):
                    yield adapter, encoder


def unet_of(checkpoint: Path) -> tuple[list[int], int]:
    """The widths of a checkpoint's cross-attentions, and of the text they take; 0: it has none."""
    opened = pack_module("files.tensors").open_tensor_file
    try:
        shapes = opened(checkpoint).tensors.shapes()
    except (ValueError, OSError):
        return [], 0
    keys = [
        key
        for key in shapes
        if key.startswith(tuple(UNET + part for part in PARTS))
        and key.endswith("attn2.to_k.weight")
    ]
    return [shapes[key][0] for key in keys], shapes[keys[0]][1] if keys else 0


def _plain_first(files: Sequence[Any]) -> Iterator[Any]:
    """The adapters that need a picture and no face; standard ones first, then Plus."""
    families = pack_module("adapters.families").Family
    for family in (families.STANDARD, families.PLUS):
        yield from (f for f in files if f.contents.spec and f.contents.spec.family is family)


def _listed(path: Path, root: Path) -> str:
    """As the loader lists an encoder: a file, or the folder that holds its config.json."""
    folder = path.parent
    whole = folder != root and (folder / "config.json").is_file()
    return (folder if whole else path).relative_to(root).as_posix()


def _missing(what: str, expected: str, folder: Path, found: Mapping[str, Sequence[Any]]) -> str:
    there = [
        f"  {name}: {', '.join(f.name for f in files) or 'nothing'}"
        for name, files in found.items()
    ]
    return "\n".join([f"No {what}: expected {expected} {folder}; found", *there])
