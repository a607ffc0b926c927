"""Loads the code under test by path, and marks tests by the folder they lie in.

The root of the repository stays off sys.path: the pack's `nodes.py` would shadow ComfyUI's there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TIERS = ("host", "server", "browser")


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
load_package("ipadapter", ROOT / "ipadapter")
load_package("support", ROOT / "tests" / "support")
torch.set_num_threads(int(os.environ.get("IMAGE_PROMPT_TEST_THREADS", "1")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by folder; leave slow ones out unless -m or a test id asks for them."""
    for item in items:
        for tier in TIERS:
            if ROOT / "tests" / tier in item.path.parents:
                item.add_marker(tier)
    if "slow" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory):
    """A real ComfyUI in this process with the pack loaded into it: a `support.host.Host`."""
    from support.host import start

    return start(tmp_path_factory.mktemp("comfyui"))
