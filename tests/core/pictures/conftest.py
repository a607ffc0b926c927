"""InsightFace's models, made for the tests, and a photograph with a face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter.pictures.faces import PACKS, load_faces


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's models/insightface with both packs."""
    pytest.importorskip("onnx")
    pytest.importorskip("skimage")
    from tools.face_models import write_pack

    root = tmp_path_factory.mktemp("insightface")
    for pack in PACKS:
        write_pack(root, pack)
    return root


@pytest.fixture(scope="module")
def analysis(models: Path) -> Any:
    pytest.importorskip("insightface")
    return load_faces(models, "buffalo_l")


@pytest.fixture(scope="module")
def photograph(models: Path) -> Tensor:
    """(1, 512, 512, 3) the astronaut."""
    from tools.face_models import astronaut

    return torch.from_numpy(astronaut().copy())[None].float() / 255
