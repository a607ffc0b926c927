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
    (path,) = asyncio.run(client.run(copy_of(SCALE), [reference], tmp_path, server.url))
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
    path = ROOT / "workflows" / "api" / "image_prompt.json"
    graph = script("tools.random_models").configured(json.loads(path.read_text("utf-8")))
    out = tmp_path / "new" / "result.png"
    saved = asyncio.run(client.run(graph, [reference], out, server.url))
    assert saved == [out, out.with_name("result_2.png")]
    assert all(path.stat().st_size for path in saved)
    assert "8 of 8" in capsys.readouterr().out


def test_client_names_each_node_that_is_wrong(
    server: Any, client: ModuleType, reference: Path, tmp_path: Path
) -> None:
    graph = copy_of(SCALE)
    graph["2"]["inputs"]["sharpening"] = 7
    del graph["3"]["inputs"]["filename_prefix"]
    with pytest.raises(client.GraphError) as caught:
        asyncio.run(client.run(graph, [reference], tmp_path, server.url))
    lines = sorted(str(caught.value).splitlines())
    assert len(lines) == 2
    assert lines[0].startswith("2 PrepImageForClipVision: ") and "sharpening" in lines[0]
    assert lines[1].startswith("3 SaveImage: ") and "filename_prefix" in lines[1]


def test_client_says_why_a_node_failed(
    server: Any, client: ModuleType, reference: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    graph = copy_of(SCALE)
    with pytest.raises(client.GraphError, match=r"^(1 LoadImage|2 Prep\w+): [^\n]+$"):
        asyncio.run(client.run(graph, [tmp_path / "broken.png"], tmp_path, server.url))


def test_command_sets_inputs_by_number_and_class(
    server: Any,
    client: ModuleType,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph, out = tmp_path / "graph.json", tmp_path / "out.png"
    graph.write_text(json.dumps(SCALE), "utf-8")
    command = [str(graph), "--image", str(reference), "--out", str(out), "--server", server.url]
    chosen = ["--set", "2.sharpening=0.5", "--set", "SaveImage.filename_prefix=by hand"]
    assert client.main([*command, *chosen]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out) and out.stat().st_size
    assert client.main([*command, "--set", "2.sharpening=7"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert client.main([*command, "--set", "2.sharpness=7"]) == 1
    assert "2 PrepImageForClipVision: image, interpolation" in capsys.readouterr().err
    assert client.main([*command[:-1], "http://127.0.0.1:9", *chosen]) == 1
