"""What an image prompt costs, measured against the same run without it.

    python scripts/python.py tests/bench/run.py attention      one cross-attention call, every shape
    python scripts/python.py tests/bench/run.py unet           a whole UNet forward, timed
    python scripts/python.py tests/bench/run.py work           the same, counted: FLOP and bytes
    python scripts/python.py tests/bench/run.py transformers   Flux and SD3.5: counted, timed
    python scripts/python.py tests/bench/run.py sample         a whole sampling run
    python scripts/python.py tests/bench/run.py apply          Apply from a file, and another weight
    python scripts/python.py tests/bench/run.py load           loading an adapter
    python scripts/python.py tests/bench/run.py memory         what stays, and peaks
    python scripts/python.py tests/bench/run.py encode         1, 16 and 128 pictures
    python scripts/python.py tests/bench/run.py growth         more adapters, pictures, masks
    python scripts/python.py tests/bench/run.py frames         a picture for each of 1,000 frames
    python scripts/python.py tests/bench/run.py imports        import time of the pack
    python scripts/python.py tests/bench/run.py training       counted work of a training step
    python scripts/python.py tests/bench/run.py epoch          pictures encoded, and from disk
    python scripts/python.py tests/bench/run.py gpu            waits and memory (--device cuda)
    python scripts/python.py tests/bench/run.py peer --peer FOLDER   beside another pack

`--base` chooses full SD1.5 or SDXL geometry, or a tiny one; `--json` prints figures as JSON. Runs
are paired (with, without, with ...), figures are medians and ratios of medians, weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # a test has loaded these packages by path
    sys.path[0] = str(ROOT / "tests")
    from bench.identify import load

    load("ipadapter", ROOT / "ipadapter")

from support.hosts import process  # noqa: E402

COMMANDS = {
    "attention": "calls",
    "unet": "models",
    "work": "models",
    "transformers": "transformers",
    "sample": "models",
    "growth": "models",
    "frames": "models",
    "apply": "applying",
    "load": "applying",
    "memory": "applying",
    "encode": "costs",
    "imports": "costs",
    "training": "training",
    "epoch": "training",
    "gpu": "gpu",
    "peer": "packs",
}


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    cells = [
        {
            key: f"{value:.2f}" if isinstance(value, float) else str(value)
            for key, value in row.items()
        }
        for row in rows
    ]
    widths = {key: max(len(key), *(len(row[key]) for row in cells)) for key in cells[0]}
    print("  ".join(key.rjust(width) for key, width in widths.items()))
    for row in cells:
        print("  ".join(row[key].rjust(width) for key, width in widths.items()))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("command", choices=COMMANDS)
    made.add_argument("--base", choices=("sd15", "sdxl", "tiny"), default="sd15")
    made.add_argument("--latent", type=int, default=64, help="side of the latent")
    made.add_argument("--steps", type=int, default=20, help="of sample, memory and gpu")
    made.add_argument("--batch", type=int, nargs="*", default=[2], help="of attention")
    made.add_argument("--tokens", type=int, nargs="*", default=[4, 16, 64, 257])
    made.add_argument("--frames", type=int, nargs="*", default=[1, 16, 100, 1000])
    made.add_argument("--repeat", type=int, default=7, help="runs of each")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--host", nargs="*", default=[], help="options for ComfyUI, without dashes")
    made.add_argument("--folder", help="for temporary files of up to 850 MB")
    made.add_argument("--peer", help="folder of another installed IP-Adapter pack")
    made.add_argument("--no-sampling", dest="sampling", action="store_false", help="of memory")
    made.add_argument("--json", action="store_true")
    return made


def measure(running: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one command. running: a started host."""
    import importlib

    import torch

    from bench.harness import Bench

    command = getattr(
        importlib.import_module(f"bench.{COMMANDS[options.command]}"), options.command
    )
    with torch.inference_mode():
        return list(command(Bench(running, options)))


def main() -> None:
    options = parser().parse_args()
    arguments = [] if options.device.startswith("cuda") else ["--cpu"]
    running = process.start(
        Path(tempfile.mkdtemp()), (*arguments, *(f"--{name}" for name in options.host))
    )
    import torch

    torch.set_num_threads(options.threads)
    rows = measure(running, options)
    print(json.dumps(rows, indent=1)) if options.json else show(rows)


if __name__ == "__main__":
    main()
