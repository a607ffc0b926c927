"""The short form of tests/soak/soak.py, and that it sees a leak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from soak.graphs import LONG_WORK, Settings, graph, write_models
from soak.report import save
from soak.run import PROBE, Soak, with_adapters
from support.hosts.server import ROOT, running

OUTPUT = ROOT / "tests" / "output" / "soak_short.png"
PROMPTS = 16


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with the models of the soak that tells what is alive in it."""
    with running(tmp_path_factory.mktemp("probed"), PROBE) as server:
        write_models(server.base / "models")
        yield server


def test_graphs_hold_only_what_the_lists_offer(probed: Any) -> None:
    """Hosts newer than 0.3.75 refuse a graph with any other value, older ones do not look."""
    info = probed.get("/object_info")
    for make in (graph, *LONG_WORK.values()):
        for node in make(Settings()).values():
            lists = offered(info[node["class_type"]]["input"])
            for name, value in node["inputs"].items():
                if name in lists and not isinstance(value, list):
                    assert value in lists[name], (make.__name__, node["class_type"], name)


def offered(declared: dict[str, Any]) -> dict[str, list[Any]]:
    """The values of every input that has a list of them, in the old form and in the new."""
    inputs = {**declared["required"], **declared.get("optional", {})}
    options = {
        name: spec[0] if isinstance(spec[0], list) else (spec[1:] or [{}])[0].get("options")
        for name, spec in inputs.items()
    }
    return {name: values for name, values in options.items() if values}


def test_prompts_interrupts_and_two_clients(probed: Any, record_property: Any) -> None:
    report = with_adapters(probed, PROMPTS, interrupts=1, rounds=1)
    save({"with adapters": report}, OUTPUT)
    record_property("measured", f"soak: {report}")
    assert report.faults == []
    assert report.gained() and report.files
    census = report.census[max(report.census)]
    assert all(count > 0 for count in census.values()), census  # each is looked for by its name


def test_a_leak_is_seen(probed: Any) -> None:
    """One that keeps every MODEL, as a cache without an end would."""
    run = Soak(probed, leak=True)
    run.prompts(PROMPTS)
    assert any("more AttentionPatch are alive" in fault for fault in run.report.faults)
