"""The pack's core for scripts, without ComfyUI."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from .environment import ROOT


def pack_module(name: str) -> ModuleType:
    """A module of the pack's core. The root stays off sys.path: nodes.py would hide the host's."""
    if "ipadapter" not in sys.modules:
        folder = ROOT / "ipadapter"
        spec = importlib.util.spec_from_file_location(
            "ipadapter", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["ipadapter"] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"ipadapter.{name}")
