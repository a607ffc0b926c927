"""Times listing and identifying a folder of 40 full-size adapter files (sparse: headers are real).

    python tests/bench/identify.py [FOLDER]

Prints the first pass (every header read) and the median of the passes after it (remembered).
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = 40


def load(name: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def make(folder: Path) -> int:
    """Write the files; return the sum of their nominal sizes."""
    from support.models.modelfiles import adapter_file
    from support.models.official_files import OFFICIAL_FILES

    cycle = itertools.islice(itertools.cycle(OFFICIAL_FILES), FILES)
    paths = [adapter_file(folder / f"{i:02}.safetensors", f.shapes()) for i, f in enumerate(cycle)]
    return sum(path.stat().st_size for path in paths)


def seconds(folder: Path) -> float:
    """One listing with every file identified."""
    from ipadapter.library.scan import scan

    start = time.perf_counter()
    families = [file.contents.spec for file in scan([folder])]
    elapsed = time.perf_counter() - start
    assert len(families) == FILES and all(families)
    return elapsed


def main() -> None:
    load("ipadapter", ROOT / "ipadapter")
    load("support", ROOT / "tests" / "support")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        size = make(Path(folder))
        cold = seconds(Path(folder))
        warm = statistics.median(seconds(Path(folder)) for _ in range(20))
    print(f"{FILES} files, {size / 1e9:.1f} GB: cold {cold:.3f} s, warm {warm * 1000:.1f} ms")


if __name__ == "__main__":
    main()
