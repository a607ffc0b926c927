"""Many queued prompts on one real server: is memory flat, and is every result still right?

    python scripts/python.py tests/soak/soak.py             30 prompts
    python scripts/python.py tests/soak/soak.py --long      1000 prompts, and a bound on the slope
    python scripts/python.py tests/soak/soak.py --prompts N

Weight, reference, mask, adapter, range and weight type change from prompt to prompt. Then come
interrupts at random moments of sampling, encoding, training and saving, and two clients with
different adapters in turn. A second server runs the same graph without an adapter, which tells the
pack's memory from the host's own. Resident memory over prompts is drawn into tests/output/soak.png,
the numbers lie beside it.

The pack's caches are made small first: what still grows once they are full is a leak.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
OUTPUT = TESTS / "output" / "soak.png"
SHORT, LONG = 30, 1000
SLOPE = 10.0  # KB per prompt that may remain after warm-up


def module(name: str) -> Any:
    """A module of the tests, which tests/conftest.py makes importable."""
    if "support" not in sys.modules:
        spec = importlib.util.spec_from_file_location("conftest", TESTS / "conftest.py")
        if spec is None or spec.loader is None:
            raise ImportError("tests/conftest.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return importlib.import_module(name)


def main() -> int:
    """0 if every result was right and memory stayed flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=SHORT)
    parser.add_argument("--long", action="store_true", help=f"{LONG} prompts")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the PNG to write")
    options = parser.parse_args()
    count = LONG if options.long else options.prompts
    run, running = module("soak.run"), module("support.hosts.server").running
    rounds = max(2, count // 50)
    reports = {}
    with tempfile.TemporaryDirectory() as base:
        with running(Path(base) / "with", run.PROBE) as server:
            reports["with adapters"] = run.with_adapters(server, count, rounds, rounds)
        with running(Path(base) / "without", run.PROBE) as server:
            reports["control, without"] = run.control(server, count)
    module("soak.report").save(reports, options.output)
    lines = [f"{name}: {report}" for name, report in reports.items()]
    faults = [fault for report in reports.values() for fault in report.faults]
    sys.stdout.write("\n".join((*lines, *faults, str(options.output))) + "\n")
    flat = count < LONG or reports["with adapters"].slope < SLOPE
    return 0 if flat and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
