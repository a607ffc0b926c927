"""What several tests over HTTP share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.server import ROOT, THREADS, script


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with the demo models only."""
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    comfy_server, models = script("tools.comfy_server"), script("tools.demo_models")
    folder = tmp_path_factory.mktemp("demo")
    base = comfy_server.make_base(folder, {script("tools.environment").NAME: ROOT})
    models.demoset().build.ensure(base / "models")
    shuffled = script("tools.contact_sheet").SHUFFLED
    models.shuffled_adapter(base / "models", models.STANDARD, shuffled)
    with comfy_server.ComfyServer(
        Path(sys.executable), Path(host), base, threads=THREADS
    ) as server:
        yield server
