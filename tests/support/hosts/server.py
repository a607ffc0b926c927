"""A real ComfyUI server for tests that talk HTTP, started and stopped as the demo does it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Threads that wait for each other stand still where other programs keep the cores busy, and the
# tests' networks are too small to gain by a second one.
THREADS = int(os.environ.get("IMAGE_PROMPT_TEST_THREADS", "1"))


def script(name: str) -> ModuleType:
    """A module of `scripts/`."""
    return importlib.import_module(name)


def client_module(name: str) -> ModuleType:
    """A module of `clients/`, found by its path as users run it."""
    path = ROOT / "clients" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"client_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@contextmanager
def running(
    base: Path,
    packs: dict[str, Path] | None = None,
    page: Path | None = None,
    models: bool = True,
) -> Iterator:
    """A server with the pack and models of random weights, or none, in the base directory `base`;
    `packs`: others beside it, by name; `page`: the folder of another editor than its own."""
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    comfy_server, environment = script("tools.comfy_server"), script("tools.environment")
    comfy_server.make_base(base, {environment.NAME: ROOT, **(packs or {})})
    random = script("tools.random_models").random_models() if models else base / "none"
    for source in random.rglob("*.safetensors"):
        link_file(source, base / "models" / source.relative_to(random))
    with comfy_server.ComfyServer(
        Path(sys.executable), Path(host), base, threads=THREADS, page=page
    ) as server:
        yield server


def link_file(source: Path, target: Path) -> None:
    """Make `source` available as `target` without its bytes if the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
