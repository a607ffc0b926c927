"""The pack in a real server, as a browser or any other program sees it."""

from __future__ import annotations

from typing import Any

import pytest
from support.hosts.server import ROOT, script
from support.references.interface import INTERFACE


def nodes_of_the_pack(server: Any) -> dict[str, dict]:
    """What the server says of each node that this pack registered."""
    module = f"custom_nodes.{script('tools.environment').NAME}"
    served = server.get("/object_info").items()
    return {name: info for name, info in served if info["python_module"] == module}


def test_every_node_in_the_source_is_served(server: Any) -> None:
    sources = [ROOT / "nodes.py", *(ROOT / "ipadapter" / "nodes").glob("*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    declared = {name for name in INTERFACE if f'"{name}"' in text}
    assert {"IPAdapterModelLoader", "IPAdapterAdvanced"} <= declared
    assert declared <= nodes_of_the_pack(server).keys()


def test_nothing_fails_to_import(server: Any) -> None:
    assert "IMPORT FAILED" not in server.log.read_text("utf-8", "replace")


def test_every_node_is_described(server: Any) -> None:
    for name, info in nodes_of_the_pack(server).items():
        assert info["display_name"], name
        assert info["category"].startswith("ipadapter"), name
        assert len(info["output_name"]) == len(info["output"]), name


def test_bad_file_is_explained_through_history(server: Any) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44642768\n"
    (server.base / "models" / "ipadapter" / "pointer.safetensors").write_text(pointer, "utf-8")
    loader = {"ipadapter_file": "pointer.safetensors"}
    graph = {
        "1": {"class_type": "IPAdapterModelLoader", "inputs": loader},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    error = script("tools.comfy_server").error_of(server.wait(server.queue(graph)))
    assert error.startswith("IPAdapterModelLoader: ")
    assert "pointer.safetensors" in error
    assert "LFS" in error


def test_refused_graph_says_why(server: Any) -> None:
    graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    with pytest.raises(script("tools.comfy_server").ServerError, match="SaveImage.*images"):
        server.queue(graph)
