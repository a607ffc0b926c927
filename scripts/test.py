"""Runs every check of this repository: `python scripts/test.py [PYTEST ARGUMENTS]`.

Format, lint and types first, then all tests from fast to slow, on up to four cores. Arguments go
to pytest only; `-n 0` among them runs the tests in one process.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tools.environment import ROOT, ready, say

# Tests that share a server or an editor stay in one process; the fast ones go first there too.
WORKERS = (
    *("--numprocesses", "logical", "--maxprocesses", "4"),
    *("--dist", "loadgroup", "--no-loadscope-reorder"),
)


def checks(python: Path) -> dict[str, tuple[str | Path, ...]]:
    """What is run before the tests. python: the interpreter whose packages the types are of."""
    types = ("-m", "pyright", "--pythonpath", python, "--project")
    return {
        "format": ("-m", "ruff", "format", "--check", ROOT),
        "lint": ("-m", "ruff", "check", ROOT),
        "types": (*types, ROOT / "pyproject.toml"),
        "types of the core": (*types, ROOT / "pyright-core.json"),
    }


def main(arguments: list[str]) -> int:
    """Run everything, whatever fails on the way; 0 if all of it passed."""
    started = time.monotonic()
    environment = ready(tools=True)
    say(f"environment: ready after {time.monotonic() - started:.0f} s ({environment.python})")
    failed = []
    for name, command in checks(environment.python).items():
        say(f"\n{name}:")
        started = time.monotonic()
        # Without the host: it has no stubs, and what is found in it differs with its version.
        if environment.run(command, cwd=ROOT, host=False):
            failed.append(name)
        say(f"{name}: {time.monotonic() - started:.1f} s")
    say("\ntests:")
    tests = environment.run(["-m", "pytest", *WORKERS, *arguments], cwd=ROOT)
    if failed:
        say(f"FAILED before the tests: {', '.join(failed)} (see above)")
    return tests or len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
