"""The official `ip-adapter` 0.1.0 package, module by module.

`import ip_adapter` fails with current diffusers: it imports a class from a place it has left. Its
modules are loaded by file path, under a name of their own, with a stand-in at that place.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACKAGE = "official_ip_adapter"
MOVED = "diffusers.pipelines.controlnet"


def official(module: str) -> ModuleType:
    """A module of the official package, such as "resampler"; skips the test if not installed."""
    pytest.importorskip("diffusers")
    found = importlib.util.find_spec("ip_adapter")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the official ip-adapter package is not installed")
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(Path(next(iter(found.submodule_search_locations))))]
        sys.modules[PACKAGE] = package
    stand_in: Any = ModuleType(MOVED)
    stand_in.MultiControlNetModel = object
    before = sys.modules.get(MOVED)
    sys.modules[MOVED] = stand_in
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    finally:
        del sys.modules[MOVED]
        if before is not None:
            sys.modules[MOVED] = before
