"""A folder of pictures with captions, and writing trained adapters."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import Problem
from ..files.paths import write_numbered

logger = logging.getLogger("ipadapter")

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MOST = {"I": 65535.0, "F": 1.0}  # white, by the first letter of Pillow's mode
STATE_SUFFIX = ".training"  # not a model suffix, so that no loader lists it


@dataclass(frozen=True)
class PictureFolder:
    """Pictures by name, and one caption each (all empty if the folder has no captions)."""

    paths: tuple[Path, ...]
    captions: tuple[str, ...]

    def image(self, number: int) -> Tensor:
        """One picture, (1, height, width, 1, 3 or 4), 0..1."""
        return read_picture(self.paths[number])


def read_folder(folder: Path, skip_unreadable: bool = False) -> PictureFolder:
    """Find the pictures of a folder and the captions in text files of the same name.

    Raises ValueError naming every file that cannot be read (left out with `skip_unreadable`), and
    every picture without a caption where others have one.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)
    broken = [problem for path in paths if (problem := _problem(path))]
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
    return PictureFolder(tuple(paths), _captions(paths))


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


def _problem(path: Path) -> tuple[str, str] | None:
    try:
        read_picture(path)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return path.name, str(error).split(" '")[0]
    return None


def _captions(paths: list[Path]) -> tuple[str, ...]:
    texts = [path.with_suffix(".txt") for path in paths]
    missing = [text.name for text in texts if not text.is_file()]
    if len(missing) == len(texts):
        return ("",) * len(texts)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Problem.TRAINING_DATA(
            f"{len(texts)} pictures and {len(texts) - len(missing)} captions: "
            f"{', '.join(missing[:5])}{more} not found. Add them (empty ones are fine)."
        )
    return tuple(text.read_text(encoding="utf-8", errors="replace").strip() for text in texts)


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
