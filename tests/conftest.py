"""Loads the code under test by path, and marks tests by the folder they lie in.

The root of the repository stays off sys.path: the pack's `nodes.py` would shadow ComfyUI's there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from _pytest.terminal import TerminalReporter

ROOT = Path(__file__).resolve().parents[1]
# Folders of tests in the order in which they run: the fast ones first.
TIERS = ("core", "host", "server", "browser")


def load_package(name: str, folder: Path) -> ModuleType:
    """Import the package in `folder` under `name`, without touching sys.path."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.append(str(ROOT / "scripts"))  # last, where it shadows nothing
load_package("ipadapter", ROOT / "ipadapter")
load_package("support", ROOT / "tests" / "support")
load_package("bench", ROOT / "tests" / "bench")
load_package("soak", ROOT / "tests" / "soak")
torch.set_num_threads(importlib.import_module("support.hosts.server").THREADS)


def tier_of(path: Path) -> str:
    """The tier whose folder `path` lies in; tests elsewhere count as core."""
    tier = path.resolve().relative_to(ROOT / "tests").parts[0]
    return tier if tier in TIERS else "core"


def group_of(item: pytest.Item) -> str:
    """What has to run in one process: the tests of a file, and those on the same editor, whose
    server takes long to start."""
    callspec = getattr(item, "callspec", None)
    page = callspec.params.get("newer") if callspec else None
    return f"page-{page}" if page else item.path.relative_to(ROOT).as_posix()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark and order tests by folder; leave slow ones out unless -m or a test id asks for them."""
    items.sort(key=lambda item: TIERS.index(tier_of(item.path)))
    for item in items:
        if (tier := tier_of(item.path)) != "core":
            item.add_marker(tier)
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    if "slow" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say what was measured, and how long each tier took."""
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    measured: list[object] = []
    for reports in terminalreporter.stats.values():
        for report in (report for report in reports if isinstance(report, pytest.TestReport)):
            tier = tier_of(ROOT / report.nodeid.split("::")[0])
            seconds[tier] = seconds.get(tier, 0.0) + report.duration
            counts[tier] = counts.get(tier, 0) + (report.when == "call" or report.skipped)
            if report.when == "teardown":  # the last to know
                measured += [what for name, what in report.user_properties if name == "measured"]
    for line in measured:
        terminalreporter.write_line(f"  {line}")
    for tier in (tier for tier in TIERS if tier in counts):
        terminalreporter.write_line(f"{tier}: {counts[tier]} tests in {seconds[tier]:.1f} s")


@pytest.fixture
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real ComfyUI in this process with the pack loaded into
    it: a `support.hosts.process.Host`."""
    from support.hosts.process import start

    host = start(tmp_path_factory.mktemp("comfyui"))
    yield host
    host.release()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server over HTTP with the pack and the demo's models: a `ComfyServer`."""
    from support.hosts.server import running

    with running(tmp_path_factory.mktemp("server")) as server:
        yield server
