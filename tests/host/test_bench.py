"""The measuring commands, at a size that costs seconds: they run, and what must be zero is zero."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

TINY = ["--base", "tiny", "--latent", "16", "--steps", "2", "--repeat", "1", "--threads", "1"]


def measured(host: Any, *arguments: str) -> list[dict[str, Any]]:
    run = importlib.import_module("bench.run")
    return run.measure(host, run.parser().parse_args([*arguments, *TINY]))


def test_every_command_has_a_function(host: Any) -> None:
    run = importlib.import_module("bench.run")
    for command, module in run.COMMANDS.items():
        assert callable(getattr(importlib.import_module(f"bench.{module}"), command))


@pytest.mark.parametrize("command", ["unet", "sample", "load", "encode"])
def test_a_command_gives_figures(host: Any, command: str, capsys: Any) -> None:
    rows = measured(host, command)
    importlib.import_module("bench.run").show(rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows) > 1


def test_counted_work_grows_with_the_tokens(host: Any) -> None:
    few, many = (row["adds % of FLOP"] for row in measured(host, "work"))
    assert 0 < few < many == pytest.approx(4 * few, rel=0.01)


def test_counted_work_of_a_transformer_grows_with_the_tokens(host: Any) -> None:
    run, commands = (importlib.import_module(f"bench.{name}") for name in ("run", "transformers"))
    harness = importlib.import_module("bench.harness")
    bench = harness.Bench(host, run.parser().parse_args(["transformers", *TINY]))
    few, many = (
        commands.Step(bench, kind.at(tiny=True), 1, 1, 16, "meta").work()
        for kind in commands.KINDS[:2]
    )
    (_, few_added), (whole, many_added) = few[:, 0], many[:, 0]
    assert 0 < few_added < whole and many_added == 4 * few_added


def test_no_layer_reads_from_the_device(host: Any) -> None:
    for row in measured(host, "gpu"):
        assert row["more reads, per step"] <= 1
        assert row["per layer"] == 0
        assert row["when a run begins"] <= 8  # the two ends, as noise levels of the run's schedule


def test_a_window_of_frames_costs_no_more_of_a_thousand(host: Any) -> None:
    rows = {row["frames"]: row for row in measured(host, "frames", "--frames", "16", "1000")}
    assert rows[1000]["forward adds MB"] == rows[16]["forward adds MB"] > 0


def test_a_new_weight_projects_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tokens nor keys: what is kept of the first Apply serves the second."""
    run, applying = (importlib.import_module(f"bench.{name}") for name in ("run", "applying"))
    harness = importlib.import_module("bench.harness")
    bench = harness.Bench(host, run.parser().parse_args(["apply", *TINY]))
    with applying.stored(bench) as file:
        adapter = file.adapter()
        file.apply(adapter)
        held = adapter.recent.nbytes()
        file.apply(adapter, 0.3)
        assert adapter.recent.nbytes() == held > 0


def test_a_copy_of_this_pack_serves_as_the_peer(host: Any, tmp_path: Any) -> None:
    import shutil

    root = importlib.import_module("bench.run").ROOT
    copy = tmp_path / "another_pack"
    copy.mkdir()
    for name in ("__init__.py", "nodes.py", "ipadapter", "locales", "web", "pyproject.toml"):
        source = root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    before = dict(host_mappings(host))
    rows = measured(host, "peer", "--peer", str(copy))
    assert {name for row in rows for name in row} == {"measured", "tokens", "this pack", "peer"}
    assert host_mappings(host) == before


def host_mappings(host: Any) -> dict[str, Any]:
    return importlib.import_module("nodes").NODE_CLASS_MAPPINGS
