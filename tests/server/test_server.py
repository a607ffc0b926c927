"""The pack in a real server, as a browser or any other program sees it."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image
from support.server import ROOT, script

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


def declared_ids() -> set[str]:
    """Ids of all nodes that the pack's source declares."""
    sources = [ROOT / "nodes.py", *(ROOT / "ipadapter" / "nodes").glob("*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    return set(re.findall(r"node_id=\"(\w+)\"", text))


def api_graph(server, path):
    workflow = json.loads(path.read_text("utf-8"))
    graph = script("comfy_server").to_api(workflow, server.get("/object_info"))
    return script("demo").configured(graph)


def test_every_node_is_served(server):
    served = server.get("/object_info")
    assert declared_ids() <= served.keys()
    assert {"IPAdapterModelLoader", "IPAdapter", "IPAdapterAdvanced"} <= declared_ids()


def test_nothing_fails_to_import(server):
    assert "IMPORT FAILED" not in server.log.read_text("utf-8", "replace")


def test_every_node_is_described(server):
    for node_id, info in server.get("/object_info").items():
        if node_id in declared_ids():
            assert info["display_name"], node_id
            assert info["category"].startswith("ipadapter"), node_id
            assert len(info["output_name"]) == len(info["output"]), node_id


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs(server, path):
    write_reference(server)
    entry = server.wait(server.queue(api_graph(server, path)))
    assert script("comfy_server").error_of(entry) is None
    assert entry["status"]["status_str"] == "success"
    for output in entry["outputs"].values():
        for image in output["images"]:
            with Image.open(io.BytesIO(server.view(image))) as picture:
                assert picture.width >= 64


def test_image_prompt_changes_the_picture(server):
    write_reference(server)
    graph = api_graph(server, ROOT / "workflows" / "image_prompt.json")
    outputs = server.wait(server.queue(graph))["outputs"]
    files = [server.view(output["images"][0]) for output in outputs.values()]
    without, with_it = (Image.open(io.BytesIO(file)).tobytes() for file in files)
    assert without != with_it


def test_bad_file_is_explained_through_history(server):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44642768\n"
    (server.base / "models" / "ipadapter" / "pointer.safetensors").write_text(pointer, "utf-8")
    loader = {"ipadapter_file": "pointer.safetensors"}
    graph = {
        "1": {"class_type": "IPAdapterModelLoader", "inputs": loader},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    error = script("comfy_server").error_of(server.wait(server.queue(graph)))
    assert error.startswith("IPAdapterModelLoader: ")
    assert "pointer.safetensors" in error
    assert "LFS" in error


def test_refused_graph_says_why(server):
    graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    with pytest.raises(script("comfy_server").ServerError, match="SaveImage.*images"):
        server.queue(graph)


def test_workflow_names_files_that_users_have(root):
    """The demo's own file names stay out of the workflows that it queues."""
    for path in WORKFLOWS:
        assert "random.safetensors" not in path.read_text("utf-8")


def write_reference(server) -> None:
    name = script("demo").SETTINGS["LoadImage"]["image"]
    script("demo").photograph().save(server.base / "input" / name)
