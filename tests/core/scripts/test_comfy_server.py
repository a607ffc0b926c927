"""scripts/tools/comfy_server.py against a stand-in host: no server outlives us, and the formats."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.hosts.server import ROOT, script

comfy_server, formats = script("tools.comfy_server"), script("tools.workflow_formats")

STAND_IN = """
import http.server, sys
if "--base-directory" not in sys.argv or "broken" in __file__:
    sys.exit("something is missing")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
START_AND_HANG = """
import pathlib, sys, time
sys.path.append(sys.argv[1])
from tools.comfy_server import ComfyServer
host, base = map(pathlib.Path, sys.argv[2:4])
with ComfyServer(pathlib.Path(sys.executable), host, base, int(sys.argv[4])):
    print("ready", flush=True)
    time.sleep(60)
"""


def stand_in(folder: Path) -> Path:
    folder.mkdir()
    (folder / "main.py").write_text(STAND_IN, "utf-8")
    return folder


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def goes_silent(port: int) -> bool:
    for _ in range(100):
        if not listens(port):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def server(tmp_path: Path) -> Any:
    base = comfy_server.make_base(tmp_path / "base", {})
    return comfy_server.ComfyServer(Path(sys.executable), stand_in(tmp_path / "host"), base)


def test_server_runs_inside_the_block_only(server: Any) -> None:
    with server:
        assert listens(server.port)
        assert server.get("/system_stats") == {}
    assert goes_silent(server.port)
    assert server.process is None


def test_exception_stops_it_even_if_it_should_stay(server: Any) -> None:
    server.keep = True
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert goes_silent(server.port)


def test_kept_server_stays(server: Any) -> None:
    server.keep = True
    try:
        with server:
            pass
        assert listens(server.port)
    finally:
        server.stop()
    assert goes_silent(server.port)


def test_killed_parent_takes_it_along(server: Any) -> None:
    arguments = [ROOT / "scripts", server.host, server.base, server.port]
    command = [sys.executable, "-c", START_AND_HANG, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == b"ready"
        assert listens(server.port)
        parent.kill()
    assert goes_silent(server.port)


def test_server_that_dies_shows_its_last_words(tmp_path: Path) -> None:
    base = comfy_server.make_base(tmp_path / "base", {})
    server = comfy_server.ComfyServer(Path(sys.executable), stand_in(tmp_path / "broken"), base)
    with pytest.raises(comfy_server.ServerError, match="something is missing"), server:
        pass


def test_taken_port_is_refused(server: Any) -> None:
    refused = pytest.raises(comfy_server.ServerError, match=f"port {server.port} is taken")
    with socket.create_server(("127.0.0.1", server.port)), refused, server:
        pass


def test_base_directory_links_pack_and_models(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    base = comfy_server.make_base(tmp_path / "base", {"pack": ROOT}, models)
    assert (base / "custom_nodes" / "pack" / "pyproject.toml").is_file()
    assert (base / "models").resolve() == models.resolve()
    assert (base / "input").is_dir()


def test_editor_format_becomes_api_format() -> None:
    info = {
        "Sampler": {
            "input": {
                "required": {
                    "model": ["MODEL"],
                    "seed": ["INT", {"control_after_generate": True}],
                    "name": [["euler", "ddim"], {}],
                },
                "optional": {"mask": ["MASK"], "strength": ["FLOAT", {}]},
            }
        },
        "Loader": {"input": {"required": {"file": ["COMBO", {"image_upload": True}]}}},
    }
    model = {"name": "model", "type": "MODEL", "link": 5}
    sampler = {"id": 2, "type": "Sampler", "widgets_values": [7, "fixed", "ddim"]}
    workflow = {
        "nodes": [
            {"id": 1, "type": "Loader", "widgets_values": ["a.png", "image"]},
            {**sampler, "inputs": [model, {"name": "mask", "type": "MASK", "link": None}]},
            {"id": 3, "type": "Note", "widgets_values": ["hello"]},
        ],
        "links": [[5, 1, 0, 2, 0, "MODEL"]],
    }
    with pytest.raises(comfy_server.ServerError, match="no node Loader"):
        formats.to_api(workflow, {})
    assert formats.to_api(workflow, info) == {
        "1": {"class_type": "Loader", "inputs": {"file": "a.png"}},
        "2": {"class_type": "Sampler", "inputs": {"seed": 7, "name": "ddim", "model": ["1", 0]}},
    }
