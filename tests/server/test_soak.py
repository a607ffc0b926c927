"""The short form of tests/soak/soak.py."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from support.server import ROOT


def soak_module() -> Any:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "tests" / "soak" / "soak.py")
    assert spec and spec.loader
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prompts_interrupts_and_two_clients(server: Any, record_property: Any) -> None:
    soak = soak_module()
    report = soak.soak(server, prompts=4, interrupts=1, rounds=1)
    soak.draw(report, soak.OUTPUT.with_name("soak_short.png"))
    record_property("measured", f"soak: {report}")
    assert report.faults == []
    assert report.growth < soak.GROWTH
