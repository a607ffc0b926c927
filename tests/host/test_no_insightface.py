"""Without the optional face library every other node works, and the face nodes say why not."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIBRARIES = ("insightface", "onnxruntime", "onnx", "cv2")
HERE = Path(__file__).resolve()
OTHERS = ("test_interface", "test_nodes", "test_image_nodes", "test_weight_nodes", "test_loaders")
BLOCK = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {LIBRARIES}
        return None if hidden else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


ABSENT = importlib.util.find_spec(LIBRARIES[0]) is None
without = pytest.mark.skipif(not ABSENT, reason="runs below, in a process that cannot import it")
TOLD = r"insightface is not installed, and FaceID adapters need it\. Install it into the Python .*"
TOLD += "-m pip install insightface onnxruntime"


@without
def test_the_loader_says_what_to_install(host: Any) -> None:
    with pytest.raises(ImportError, match=TOLD):
        host.call("IPAdapterInsightFaceLoader", provider="CPU", model_name="buffalo_l")


@without
def test_the_doctor_says_it_too(host: Any) -> None:
    from support.models.unets import TINY_SD15, build_model

    (report,) = host.call("IPAdapterDoctor", model=build_model(TINY_SD15), preset="any")
    assert re.search(TOLD, report)


@without
def test_all_nodes_are_there(host: Any) -> None:
    assert {"IPAdapterFaceID", "IPAdapterInsightFaceLoader"} <= host.node_ids
    assert "insightface" not in sys.modules


@pytest.mark.skipif(ABSENT, reason="every test of this run is one without it")
def test_everything_else_works(host: Any) -> None:
    """This file's other tests and those of the other nodes, where the libraries
    cannot be imported."""
    files = [HERE, *(HERE.with_name(f"{name}.py") for name in OTHERS)]
    command = [sys.executable, "-c", BLOCK, "-q", "-p", "no:cacheprovider", *map(str, files)]
    ran = subprocess.run(
        command, cwd=HERE.parents[2], env={**os.environ}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    passed, skipped = (
        int(match[1]) if (match := re.search(rf"(\d+) {word}", ran.stdout)) else 0
        for word in ("passed", "skipped")
    )
    assert passed > 30
    assert skipped == 1  # this test itself
