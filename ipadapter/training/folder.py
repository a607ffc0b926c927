"""A folder of pictures with captions, and writing trained adapters."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import Problem
from ..files.paths import write_numbered
from .store import Store, digest_of

logger = logging.getLogger("ipadapter")

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MOST = {"I": 65535.0, "F": 1.0}  # white, by the first letter of Pillow's mode
_NAMES, _TEXTS = ("file_name", "file", "image"), ("text", "caption")  # keys of lines of JSON
STATE_SUFFIX = ".training"  # not a model suffix, so that no loader lists it


@dataclass(frozen=True)
class PictureFolder:
    """Pictures by name, and one caption each (all empty if the folder has no captions)."""

    paths: tuple[Path, ...]
    captions: tuple[str, ...]

    def image(self, number: int) -> Tensor:
        """One picture, (1, height, width, 1, 3 or 4), 0..1."""
        return read_picture(self.paths[number])

    def content(self, number: int) -> str:
        """A digest of one picture's bytes."""
        return digest_of(self.paths[number].read_bytes())


def read_folder(
    folder: Path, skip_unreadable: bool = False, store: Store | None = None
) -> PictureFolder:
    """Find the pictures of a folder and their captions: in text files of the same name, or in lines
    of JSON, {"file_name": "a.png", "text": "..."}, of any .jsonl file there.

    Raises ValueError naming every file that cannot be read (left out with `skip_unreadable`), and
    every picture without a caption where others have one. store: remembers which pictures could be
    read, so that a large folder is looked through once.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)
    broken = [problem for path in paths if (problem := _problem(path, store))]
    names = [name for name, _ in broken]
    if broken and not skip_unreadable:
        found = "; ".join(f"{name} ({reason})" for name, reason in broken[:5])
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise Problem.TRAINING_DATA(
            f"{len(broken)} of {len(paths)} pictures in {folder.name} cannot be read: {found}"
            f"{more}. Remove them, or switch on skip_unreadable."
        )
    if broken:
        logger.warning("Left out of %s, unreadable: %s", folder.name, ", ".join(names))
    paths = [path for path in paths if path.name not in names]
    if not paths:
        raise Problem.TRAINING_DATA(
            f"{folder.name} has no readable picture ({', '.join(_PICTURES)}): put pictures into "
            "this folder of ComfyUI's input, each with a caption in a .txt file of the same name."
        )
    return PictureFolder(tuple(paths), _captions(paths, _lines(folder)))


def read_picture(path: Path) -> Tensor:
    """(1, height, width, 1, 3 or 4), 0..1, turned as its EXIF data says."""
    opened = Image.open(path)
    with opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode[0] in _MOST:  # grey of 16 bits or of floats, which Pillow's RGB cuts to 8
            values = np.asarray(picture, dtype=np.float32) / _MOST[picture.mode[0]]
            return torch.from_numpy(values)[None, :, :, None]
        has_alpha = "A" in picture.getbands() or "transparency" in picture.info
        levels = np.array(picture.convert("RGBA" if has_alpha else "RGB"))
    return torch.from_numpy(levels).float().div(255).unsqueeze(0)


def _problem(path: Path, store: Store | None) -> tuple[str, str] | None:
    try:
        seen = "" if store is None else digest_of("readable", path.read_bytes())
        if store is not None and store.has(seen):
            return None
        size = read_picture(path).shape[1:3]
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return path.name, str(error).split(" '")[0]
    if store is not None:
        store.put(seen, {"size": torch.tensor(size)})
    return None


def _lines(folder: Path) -> dict[str, str]:
    """Captions by picture, from lines of JSON."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
            if line.strip():
                found.update([_caption_of(line, f"{path.name}, line {number}")])
    return found


def _caption_of(line: str, where: str) -> tuple[str, str]:
    """A picture's name and its caption."""
    try:
        entry: Any = json.loads(line)
        name = next(entry[key] for key in _NAMES if key in entry)
        text = next(entry[key] for key in _TEXTS if key in entry)
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError
    except (ValueError, TypeError, StopIteration) as error:
        raise Problem.TRAINING_DATA(
            f"{where} is no caption: expected a line such as "
            '{"file_name": "a.png", "text": "what it shows"}.'
        ) from error
    return name.removeprefix("./"), text.strip()


def _captions(paths: list[Path], lines: Mapping[str, str]) -> tuple[str, ...]:
    """One per picture: of its text file, else of the lines."""
    found = [_text(path.with_suffix(".txt"), lines.get(path.name)) for path in paths]
    texts = [text for text in found if text is not None]
    missing = [
        path.with_suffix(".txt").name
        for path, text in zip(paths, found, strict=True)
        if text is None
    ]
    if not texts:
        return ("",) * len(paths)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Problem.TRAINING_DATA(
            f"{len(paths)} pictures and {len(texts)} captions: "
            f"{', '.join(missing[:5])}{more} not found. Add them (empty ones are fine)."
        )
    return tuple(texts)


def _text(path: Path, otherwise: str | None) -> str | None:
    return path.read_text("utf-8", "replace").strip() if path.is_file() else otherwise


def write_adapter(stem: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a new numbered file, whole or not at all. ValueError if it cannot be written."""
    with _explained(stem):
        return write_numbered(
            stem, ".safetensors", lambda path: save_file(_savable(tensors), path, dict(metadata))
        )


def write_state(adapter: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a training state beside its adapter's file, whole or not at all."""
    path = adapter.with_suffix(STATE_SUFFIX)
    partial = path.with_name(f".{path.name}.part")
    try:
        with _explained(path):
            save_file(_savable(tensors), partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


@contextmanager
def _explained(path: Path) -> Generator[None, None, None]:
    """Turn what an operating system says into what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise Problem.WRITE_FAILED(
            f"{path.name} could not be written to {path.parent} ({error}). Nothing was changed "
            "there. Free some space, or let ComfyUI write to this folder, and run the node again: "
            "the adapter is still in memory."
        ) from error
