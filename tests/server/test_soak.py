"""The short form of tests/soak/soak.py, and that it sees a leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.server import ROOT, running
from support.soak_graphs import write_models
from support.soak_run import PROBE, Soak, with_adapters
from support.soaking import save

OUTPUT = ROOT / "tests" / "output" / "soak_short.png"
PROMPTS = 24


def test_prompts_interrupts_and_two_clients(tmp_path: Path, record_property: Any) -> None:
    report = with_adapters(tmp_path, PROMPTS, interrupts=1, rounds=1)
    save({"with adapters": report}, OUTPUT)
    record_property("measured", f"soak: {report}")
    assert report.faults == []
    assert report.gained()


def test_a_leak_is_seen(tmp_path: Path) -> None:
    """One that keeps every MODEL, as a cache without an end would."""
    with running(tmp_path, PROBE) as server:
        write_models(server.base / "models")
        run = Soak(server, leak=True)
        run.prompts(PROMPTS)
    assert any("AttentionPatch" in fault for fault in run.report.faults), run.report
