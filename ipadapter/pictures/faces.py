"""Faces in pictures, through InsightFace: the only module that imports it, and only when used.

InsightFace is optional and is never made to download anything: model packs are checked on disk
before the library sees them. Its model packs are licensed for non-commercial research.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import Problem, plain_text
from ..files.paths import below
from ..files.tensors import refuse_downloaded_text
from .images import CLIP_MEAN, as_rgb

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger("ipadapter")

PACKS = {
    "buffalo_l": ("1k3d68", "2d106det", "det_10g", "genderage", "w600k_r50"),
    "antelopev2": ("1k3d68", "2d106det", "genderage", "glintr100", "scrfd_10g_bnkps"),
}
PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "ROCM": "ROCMExecutionProvider",
    "DirectML": "DmlExecutionProvider",
    "OpenVINO": "OpenVINOExecutionProvider",
    "CoreML": "CoreMLExecutionProvider",
}
CROP_SIZES = {"SD1.5": 224, "SDXL": 256, "Kolors": 336}
DETECTION_SIZES = tuple(range(640, 255, -64))
_ORT = "onnxruntime"
_LIBRARIES = ("insightface", _ORT, f"{_ORT}-gpu", f"{_ORT}-directml", "numpy", "opencv-python")


class MissingFace(str, Enum):
    """What to do with a picture without a face."""

    ERROR = "error"
    SKIP = "skip"
    REUSE = "reuse previous"


@dataclass(frozen=True, eq=False)
class Faces:
    """One face per picture, of the pictures that have one; `in_step`, an entry for each."""

    raw: Tensor
    """(faces, 512) embeddings as the recogniser gives them."""
    crops: Tensor
    """(faces, size, size, 3) the faces upright, in RGB 0 to 1."""
    indices: tuple[int, ...]
    """The picture that each face is for."""

    @property
    def normed(self) -> Tensor:
        """(faces, 512) embeddings of length 1."""
        return torch.nn.functional.normalize(self.raw, dim=-1)

    def in_step(self, pictures: int) -> Faces:
        """An entry for each picture: where there is no face, zeros and the colour that says nothing
        to an image encoder."""
        raw = self.raw.new_zeros(pictures, *self.raw.shape[1:])
        crops = self.crops.new_tensor(CLIP_MEAN).repeat(pictures, *self.crops.shape[1:3], 1)
        raw[list(self.indices)], crops[list(self.indices)] = self.raw, self.crops
        return replace(self, raw=raw, crops=crops)

    def shows(self, pictures: int) -> tuple[bool, ...]:
        """Per picture, whether it has a face; empty where all have one."""
        found = tuple(index in self.indices for index in range(pictures))
        return () if all(found) else found

    def embeds(self, raw: bool) -> Tensor:
        """The embeddings that an adapter takes: raw for the unnorm portrait, else of length 1."""
        return self.raw if raw else self.normed


class _Found(NamedTuple):
    """A face and the picture it was found in (BGR uint8, perhaps with a border)."""

    picture: np.ndarray
    keypoints: np.ndarray


def load_faces(folder: Path, pack: str, provider: str = "CPU") -> Any:
    """A FaceAnalysis (detection and recognition) of `folder`/models/`pack`.

    `folder` is the host's models/insightface. The result goes through the INSIGHTFACE socket, and
    one made by another pack's loader serves `find_faces` as well.
    """
    _library()  # without it a model pack is of no use: said first
    location, providers = check_pack(Path(folder), pack), _providers(provider)
    cpu, started = [PROVIDERS["CPU"]], partial(_start, location, Path(folder))
    if providers == cpu:
        return started(cpu)
    try:
        analysis = started(providers)
        reason = _why_not_on(analysis, providers[0])
    except _ort_errors() as error:
        analysis, reason = None, plain_text(error)
    if not reason and analysis is not None:
        return analysis
    analysis = started(cpu)  # what fails here too is not the provider's fault
    logger.warning(
        "InsightFace runs on the CPU: onnxruntime lists %s and could not start it (%s).",
        providers[0],
        reason.strip().splitlines()[0][:200],
    )
    return analysis


def _start(location: Path, folder: Path, providers: list[str]) -> Any:
    """A FaceAnalysis of a checked pack; ValueError if it lacks a model."""
    try:
        analysis = _library().FaceAnalysis(
            name=str(location),
            root=str(folder),
            allowed_modules=["detection", "recognition"],
            providers=providers,
        )
    except AssertionError as error:
        raise Problem.FACE_MODELS(_pack_message(location, "holds no face detector")) from error
    if "recognition" not in analysis.models:
        raise Problem.FACE_MODELS(_pack_message(location, "holds no face recogniser"))
    analysis.prepare(ctx_id=0, det_size=(DETECTION_SIZES[0], DETECTION_SIZES[0]))
    return analysis


def _why_not_on(analysis: Any, provider: str) -> str:
    """Why sessions do not run on a provider, found out by running them; empty if they do."""
    import numpy as np

    for model in analysis.models.values():
        if provider not in model.session.get_providers():
            return f"its session runs on {', '.join(model.session.get_providers())}"
    size = DETECTION_SIZES[-1]
    analysis.det_model.detect(np.zeros((size, size, 3), np.uint8), input_size=(size, size))
    analysis.models["recognition"].get_feat(np.zeros((112, 112, 3), np.uint8))
    return ""


def _ort_errors() -> tuple[type[Exception], ...]:
    """What a provider that does not work raises: onnxruntime's own classes share no base."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type)]
    own = [kind for kind in kinds if issubclass(kind, Exception)]
    return (RuntimeError, ValueError, OSError, *own)


def find_faces(
    analysis: Any,
    images: Tensor,
    crop_size: int,
    missing: MissingFace | str = MissingFace.ERROR,
    name: str = "image",
) -> Faces:
    """The largest face of each picture (images, height, width, channels).

    `name` is the node's input, for messages.
    """
    if analysis is None:
        raise Problem.WRONG_INPUT("InsightFace is not connected: add IPAdapter InsightFace Loader.")
    found = [_largest_face(analysis, _to_bgr(image)) for image in as_rgb(images, name)]
    chosen = _apply_policy(found, MissingFace(missing), name)
    return Faces(
        torch.stack([_embedding(analysis, face) for _, face in chosen]),
        torch.stack([_crop(face, crop_size) for _, face in chosen]),
        tuple(index for index, _ in chosen),
    )


def any_face(analysis: Any, images: Tensor) -> bool:
    """Whether one of the pictures (images, height, width, channels) shows a face."""
    return any(_largest_face(analysis, _to_bgr(image)) for image in images)


def crop_size_for(base_name: str) -> int:
    """Side of the aligned crop that FaceID Plus adapters of a base were trained with."""
    return CROP_SIZES.get(base_name, CROP_SIZES["SD1.5"])


def check_pack(folder: Path, pack: str) -> Path:
    """The folder of an unpacked model pack; FileNotFoundError says what is wrong with its place.

    ValueError for a name that leads out of `folder`/models.
    """
    location = below(folder / "models", pack)
    models = sorted(location.glob("*.onnx"))
    if not models:
        raise Problem.FACE_MODELS(
            _pack_message(location, _misplaced(folder, pack)), FileNotFoundError
        )
    for model in models:
        refuse_downloaded_text(model)
    return location


def environment() -> str:
    """One line on InsightFace for reports: its version, or what is wrong with it."""
    try:
        _library()
    except ImportError as error:
        return f"INSIGHTFACE  {plain_text(error)}"
    return f"INSIGHTFACE  works ({_versions()})"


def _misplaced(folder: Path, pack: str) -> str:
    """Where the pack's models are, if not where they belong."""
    location = folder / "models" / pack
    if any(location.glob("*/*.onnx")):
        nested = next(iter(location.glob("*/*.onnx"))).parent
        return f"the models are one folder too deep, in {nested}; move them up"
    if any((folder / pack).glob("*.onnx")):
        return f"the models are in {folder / pack}, which lacks the folder 'models' in between"
    if any((folder / "models").glob("*.onnx")):
        return f"the models lie loose in {folder / 'models'}; put them into a folder {pack}"
    for archive in (folder / "models" / f"{pack}.zip", folder / f"{pack}.zip"):
        if archive.is_file():
            return f"{archive} is not unpacked yet"
    if location.is_dir():
        return "the folder has no .onnx files"
    return "there is no such folder"


def _pack_message(location: Path, found: str) -> str:
    names = PACKS.get(location.name, ("a detector", "a recogniser"))
    tree = "\n".join(f"    {name}.onnx" for name in names)
    return (
        f"The InsightFace model pack {location.name} is missing or incomplete: {found}.\n"
        f"Expected:\n  {location}\n{tree}\n"
        f"Download {location.name}.zip from the InsightFace releases and unpack it flat into that "
        "folder. The models are for non-commercial research."
    )


def _library() -> SimpleNamespace:
    """FaceAnalysis and norm_crop; ImportError says whether it is absent or broken, and how."""
    try:
        from insightface.app import FaceAnalysis
        from insightface.utils.face_align import norm_crop
    except ModuleNotFoundError as error:
        if error.name == "insightface":
            raise Problem.FACE_LIBRARY(
                "insightface is not installed, and FaceID adapters need it. Install it into the "
                f"Python that runs ComfyUI: {sys.executable} -m pip install insightface "
                "onnxruntime\n",
                ImportError,
            ) from error
        raise Problem.FACE_LIBRARY(_broken(error), ImportError) from error
    except (ImportError, ValueError, AttributeError, TypeError, RuntimeError, OSError) as error:
        raise Problem.FACE_LIBRARY(_broken(error), ImportError) from error
    return SimpleNamespace(FaceAnalysis=FaceAnalysis, norm_crop=norm_crop)


def _broken(error: Exception) -> str:
    return (
        f"insightface is installed but does not load ({type(error).__name__}: {error}). "
        f"Versions: {_versions()}. Packages that do not fit each other (often numpy) are the usual "
        f"cause: {sys.executable} -m pip install --upgrade insightface onnxruntime\n"
    )


def _versions() -> str:
    found = [f"Python {sys.version.split()[0]}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _providers(provider: str) -> list[str]:
    """ONNX Runtime's names, with the CPU as the fallback."""
    if provider not in PROVIDERS:
        raise Problem.BAD_VALUE(
            f"provider: expected one of {', '.join(PROVIDERS)}, got {provider!r}."
        )
    onnxruntime: Any = importlib.import_module("onnxruntime")
    wanted, cpu = PROVIDERS[provider], PROVIDERS["CPU"]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        logger.warning(
            "InsightFace runs on the CPU: this onnxruntime has no %s (it has %s).",
            wanted,
            ", ".join(available),
        )
        return [cpu]
    return [wanted] if wanted == cpu else [wanted, cpu]


def _largest_face(analysis: Any, picture: np.ndarray) -> _Found | None:
    """The largest face; a face that fills the picture is only seen with a border around it."""
    import numpy as np

    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    border = ((height, height), (width, width), (0, 0))
    for attempt in (lambda: picture, lambda: np.pad(picture, border)):
        padded = attempt()
        for size in DETECTION_SIZES:
            # The size goes in as an argument: the detector is shared and keeps its own setting.
            boxes, keypoints = analysis.det_model.detect(padded, input_size=(size, size))
            if len(boxes) and keypoints is not None:
                areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
                return _Found(padded, keypoints[int(areas.argmax())])
    return None


def _apply_policy(
    found: Sequence[_Found | None], missing: MissingFace, name: str
) -> list[tuple[int, _Found]]:
    """(picture's index, face) with pictures without a face refused, left out or filled in."""
    faces = [(index, face) for index, face in enumerate(found) if face]
    without = [index + 1 for index, face in enumerate(found) if not face]
    if not faces or (without and missing is MissingFace.ERROR):
        raise Problem.NO_FACE(_no_face(without, len(found), name))
    if not without or missing is MissingFace.SKIP:
        return faces
    previous = faces[0][1]  # pictures before the first face get the first
    filled: list[tuple[int, _Found]] = []
    for index, face in enumerate(found):
        previous = face or previous
        filled.append((index, previous))
    return filled


def _no_face(without: list[int], total: int, name: str) -> str:
    if total == 1:
        where = "in the picture"
    elif len(without) == total:
        where = f"in any of the {total} pictures"
    else:
        shown = ", ".join(str(number) for number in without[:10])
        more = f" and {len(without) - 10} more" if len(without) > 10 else ""
        where = f"in image {shown}{more} of {total}"
    return (
        f"{name}: no face found {where} (looked at sizes {DETECTION_SIZES[0]} to "
        f"{DETECTION_SIZES[-1]}, and with a border added). Use a photograph of one clear face; "
        "drawn and anime faces are not recognised."
    )


def _to_bgr(image: Tensor) -> np.ndarray:
    """(height, width, 3) RGB 0 to 1 -> uint8 BGR, as InsightFace takes it."""
    levels = (image.detach().cpu() * 255).round().to(torch.uint8)
    return levels.flip(-1).contiguous().numpy()


def _embedding(analysis: Any, face: _Found) -> Tensor:
    """(512,) raw embedding of a found face."""
    subject = SimpleNamespace(kps=face.keypoints, embedding=None)
    analysis.models["recognition"].get(face.picture, subject)
    return torch.from_numpy(subject.embedding).float().flatten()


def _crop(face: _Found, size: int) -> Tensor:
    """(size, size, 3) the face upright, RGB 0 to 1."""
    crop = _library().norm_crop(face.picture, landmark=face.keypoints, image_size=size)
    return torch.from_numpy(crop.copy()).flip(-1).float() / 255
