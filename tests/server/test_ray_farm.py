"""The Ray client's work by one worker: a run that is killed goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.hosts.server import ROOT, script

COUNT = 3


def command(folder: Path) -> list[str]:
    graph = str(folder / "graph.json")
    farm = [sys.executable, "-u", str(ROOT / "clients" / "ray_farm.py"), str(folder / "pictures")]
    return [*farm, "--output", str(folder / "out"), "--local", "--graph", graph]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process as Linux does")
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    models = script("tools.demo_models")
    (tmp_path / "pictures").mkdir()
    for colour in ("red", "yellow", "blue")[:COUNT]:
        picture = models.drawing("ring", colour, "white")
        picture.save(tmp_path / "pictures" / f"{colour}.png")
    graph = (ROOT / "workflows" / "api" / "load_embeds.json").read_text("utf-8")
    (tmp_path / "graph.json").write_text(graph, "utf-8")
    out = tmp_path / "out"
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = next(process.stdout)
        assert first.startswith("Draws ") and "the demo's small models" in first
        for line in process.stdout:
            if " drawn " in line:
                process.send_signal(signal.SIGKILL)
                break
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    drawn = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert len(before) == COUNT and 1 <= len(drawn) < COUNT
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, check=True)
    assert "0 encoded" in again.stdout and f"{COUNT - len(drawn)} drawn in" in again.stdout
    assert len(list(out.glob("*.png"))) == COUNT and not list(out.glob("*.part"))
    for path, time in {**before, **drawn}.items():
        assert path.stat().st_mtime_ns == time
