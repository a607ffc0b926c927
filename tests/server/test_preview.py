"""What the encoder sees is shown to those who look, and changes nothing for anybody."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.hosts.server import ROOT, script

from ipadapter.pictures.images import clip_image

WIDE = "wide.png"
SAVED = "SaveImage"


@pytest.fixture(scope="module")
def graph(server: Any) -> dict[str, Any]:
    """The template image_prompt with the demo's models and a wide picture."""
    pixels = np.random.default_rng(3).integers(0, 255, (40, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((400, 160)).save(server.base / "input" / WIDE)
    graph = json.loads((ROOT / "workflows" / "api" / "image_prompt.json").read_text("utf-8"))
    graph = script("tools.random_models").configured(graph)
    for node in graph.values():
        node["inputs"] |= {"image": WIDE} if node["class_type"] == "LoadImage" else {}
        node["inputs"] |= {"steps": 2} if node["class_type"] == "KSampler" else {}
    return graph


def run(server: Any, graph: dict[str, Any], weight: float, editor: bool) -> dict[str, Any]:
    """The outputs of a run by class of node, queued as the editor or as a program queues it."""
    changed = json.loads(json.dumps(graph))
    for node in changed.values():
        node["inputs"] |= {"weight": weight} if "weight" in node["inputs"] else {}
    body: dict[str, Any] = {"prompt": changed, "client_id": "test"}
    if editor:
        body["extra_data"] = {"extra_pnginfo": {"workflow": {"nodes": []}}}
    queued = json.loads(server.fetch("/prompt", json.dumps(body).encode()))
    entry = server.wait(queued["prompt_id"])
    assert script("tools.comfy_server").error_of(entry) is None
    return {changed[number]["class_type"]: found for number, found in entry["outputs"].items()}


def pixels(server: Any, file: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(server.view(file))).convert("RGB"))


def test_preview_is_for_those_who_look(server: Any, graph: dict[str, Any]) -> None:
    program = run(server, graph, 0.61, editor=False)
    assert "IPAdapterAdvanced" not in program
    before = pixels(server, program[SAVED]["images"][0])
    run(server, graph, 0.62, editor=False)  # so that nothing of the first run is cached
    editor = run(server, graph, 0.61, editor=True)
    assert np.array_equal(pixels(server, editor[SAVED]["images"][0]), before)

    shown = editor["IPAdapterAdvanced"]
    (square,) = shown["images"]
    assert square["type"] == "temp"
    given = Image.open(server.base / "input" / WIDE).convert("RGB")
    picture = torch.from_numpy(np.array(given)).float()[None] / 255
    seen = pixels(server, square)
    expected = (clip_image(picture, len(seen))[0] * 255).round().byte().numpy()
    assert np.abs(seen.astype(int) - expected).max() <= 1  # the host cuts decimals when it saves

    caption, warning = shown["text"][0].split("\n")
    assert caption == f"What the encoder sees: {len(seen)} x {len(seen)} px"
    assert "400 x 160" in warning and "60%" in warning
    assert "IPAdapter Tiled" in warning and '"pad"' in warning


def test_encoder_node_shows_only_what_the_mask_leaves(server: Any, graph: dict[str, Any]) -> None:
    loaders = ("LoadImage", "CLIPVisionLoader", "IPAdapterModelLoader")
    kept = {number: node for number, node in graph.items() if node["class_type"] in loaders}
    by_class = {node["class_type"]: number for number, node in kept.items()}
    wires = {"image": "LoadImage", "clip_vision": loaders[1], "ipadapter": loaders[2]}
    inputs = {name: [by_class[kind], 0] for name, kind in wires.items()}
    for number, value, size in (("88", 0.0, 64), ("89", 1.0, 32)):
        mask = {"value": value, "width": size, "height": size}
        kept[number] = {"class_type": "SolidMask", "inputs": mask}
    place = {"destination": ["88", 0], "source": ["89", 0], "x": 16, "y": 16, "operation": "add"}
    kept["90"] = {"class_type": "MaskComposite", "inputs": place}
    kept["91"] = {
        "class_type": "IPAdapterEncoder",
        "inputs": {**inputs, "mask": ["90", 0], "weight": 1.0},
    }
    saving = {"embeds": ["91", 0], "filename_prefix": "preview_test"}
    kept["92"] = {"class_type": "IPAdapterSaveEmbeds", "inputs": saving}
    (square,) = run(server, kept, 1.0, editor=True)["IPAdapterEncoder"]["images"]
    shown = pixels(server, square)
    edge = shown.shape[0] // 8
    assert np.ptp(shown[:edge].reshape(-1, 3), axis=0).max() == 0  # one plain colour
    assert shown[4 * edge].std() > 10


def test_attention_map_is_shown_by_itself(server: Any, graph: dict[str, Any]) -> None:
    """Nothing has to be connected to it."""
    number = {node["class_type"]: number for number, node in graph.items()}
    sampler = graph[number["KSampler"]]
    record = {"model": sampler["inputs"]["model"], "show": "effect", "blocks": "all"}
    shown = {"record": ["900", 1], "image": [number["VAEDecode"], 0], "opacity": 0.6}
    recording = {
        **graph,
        number["KSampler"]: {**sampler, "inputs": {**sampler["inputs"], "model": ["900", 0]}},
        "900": {"class_type": "IPAdapterRecordAttention", "inputs": record},
        "901": {"class_type": "IPAdapterAttentionMap", "inputs": shown},
    }
    del recording[number[SAVED]]
    (picture,) = run(server, recording, 0.63, editor=True)["IPAdapterAttentionMap"]["images"]
    assert pixels(server, picture).std() > 0
    assert "IPAdapterAttentionMap" not in run(server, recording, 0.64, editor=False)
