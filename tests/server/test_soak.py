"""The short form of tests/soak/soak.py, and that it sees a leak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from soak.report import save
from soak.run import PROBE, Soak, with_adapters
from support.hosts.server import ROOT, running

OUTPUT = ROOT / "tests" / "output" / "soak_short.png"
PROMPTS = 16


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that tells what is alive in it."""
    with running(tmp_path_factory.mktemp("probed"), PROBE) as server:
        yield server


def test_prompts_interrupts_and_two_clients(probed: Any, record_property: Any) -> None:
    report = with_adapters(probed, PROMPTS, interrupts=1, rounds=1)
    save({"with adapters": report}, OUTPUT)
    record_property("measured", f"soak: {report}")
    assert report.faults == []
    assert report.gained() and report.files


def test_a_leak_is_seen(probed: Any) -> None:
    """One that keeps every MODEL, as a cache without an end would."""
    run = Soak(probed, leak=True)
    run.prompts(PROMPTS)
    assert any("more AttentionPatch are alive" in fault for fault in run.report.faults)
