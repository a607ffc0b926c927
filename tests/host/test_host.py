"""The in-process host itself: real node classes, real graphs, errors as the user sees them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


def test_pack_registers_its_nodes(host: Any) -> None:
    assert {"IPAdapterModelLoader", "IPAdapterAdvanced"} <= host.node_ids


def test_base_directory_is_isolated(host: Any) -> None:
    import folder_paths

    assert folder_paths.base_path == str(host.base)
    assert host.models("checkpoints").is_relative_to(host.base)


def test_runs_a_graph_of_core_nodes(host: Any) -> None:
    outputs = host.run(
        {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 255},
            },
            "2": {
                "class_type": "SaveImage",
                "inputs": {"images": ["1", 0], "filename_prefix": "core"},
            },
        }
    )
    (saved,) = outputs["2"]["images"]
    assert (host.base / "output" / saved["filename"]).is_file()


def test_node_errors_are_raised_with_their_message(host: Any) -> None:
    from support.hosts.process import GraphError

    graph = {
        "1": {
            "class_type": "IPAdapterModelLoader",
            "inputs": {"ipadapter_file": "missing.safetensors"},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises((GraphError, ValueError), match=r"missing\.safetensors"):
        host.run(graph)


def test_calls_one_node(host: Any) -> None:
    (image,) = host.call("EmptyImage", width=4, height=4, batch_size=2, color=0)
    assert image.shape == (2, 4, 4, 3)


def test_the_hosts_own_server_modules_can_be_imported(host: Any) -> None:
    server, utils = (importlib.import_module(name) for name in ("server", "utils.install_util"))
    assert server.PromptServer and callable(utils.get_missing_requirements_message)
