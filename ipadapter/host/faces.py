"""Face analysis from the host's models folder; one that is in use is shared."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import folder_paths

from ..pictures.faces import load_faces

_LOADED: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()


def load_face_analysis(pack: str, provider: str) -> Any:
    """InsightFace with a model pack of models/insightface/models."""
    analysis = _LOADED.get((pack, provider))
    if analysis is None:
        analysis = load_faces(Path(folder_paths.models_dir) / "insightface", pack, provider)
        _LOADED[pack, provider] = analysis
    return analysis
