"""The example client against a real server."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from support.hosts.server import ROOT, client_module, script

SCALE = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
    "2": {
        "class_type": "PrepImageForClipVision",
        "inputs": {
            "image": ["1", 0],
            "interpolation": "LANCZOS",
            "crop_position": "center",
            "sharpening": 0.0,
        },
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "client"}},
}


@pytest.fixture(scope="module")
def client() -> ModuleType:
    return client_module("client")


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "my reference é.png"
    noise = Image.frombytes("RGB", (96, 64), os.urandom(96 * 64 * 3))
    noise.save(path)
    return path


def copy_of(graph: dict[str, Any]) -> dict[str, Any]:
    return {key: {**node, "inputs": dict(node["inputs"])} for key, node in graph.items()}


def test_client_saves_pictures(
    server: Any,
    client: ModuleType,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (path,) = asyncio.run(client.run(copy_of(SCALE), reference, tmp_path, server.url))
    with Image.open(path) as picture:
        assert picture.size == (224, 224)
    assert "PrepImageForClipVision" in capsys.readouterr().out


def test_client_follows_sampling(
    server: Any,
    client: ModuleType,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = ROOT / "workflows" / "image_prompt.json"
    formats, models = script("tools.workflow_formats"), script("tools.random_models")
    graph = formats.to_api(json.loads(path.read_text("utf-8")), server.info)
    saved = asyncio.run(client.run(models.configured(graph), reference, tmp_path, server.url))
    assert saved
    assert "8 of 8" in capsys.readouterr().out


def test_client_names_the_input_that_is_wrong(
    server: Any, client: ModuleType, reference: Path, tmp_path: Path
) -> None:
    graph = copy_of(SCALE)
    graph["2"]["inputs"]["sharpening"] = 7
    with pytest.raises(RuntimeError, match="value_bigger_than_max"):
        asyncio.run(client.run(graph, reference, tmp_path, server.url))


def test_client_says_why_a_node_failed(
    server: Any, client: ModuleType, reference: Path, tmp_path: Path
) -> None:
    graph = copy_of(SCALE)
    graph["2"]["inputs"]["crop_position"] = "sideways"
    with pytest.raises(RuntimeError, match="crop_position"):
        asyncio.run(client.run(graph, reference, tmp_path, server.url))
