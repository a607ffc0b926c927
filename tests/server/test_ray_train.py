"""Training from the command line in one and in two processes, on the demo base.

Minutes long, so it runs when asked for: `python scripts/test.py tests/server -m slow -k ray_train`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.hosts.server import ROOT, script

STEPS = 4


def trained(folder: Path, workers: int, *more: str) -> dict[str, torch.Tensor]:
    """Run the command; returns the training state that it leaves."""
    models = script("tools.demo_models").demo_models()
    command = [sys.executable, str(ROOT / "clients" / "ray_train.py"), str(folder / "pictures")]
    command += ["--checkpoint", str(models / "checkpoints" / "demoset.safetensors")]
    command += ["--encoder", str(models / "clip_vision" / "demoset")]
    command += ["--output", str(folder / f"out{workers}"), "--workers", str(workers)]
    command += ["--cpu", "--precision", "fp32", "--resolution", "128", "--batch-size", "2"]
    command += ["--steps", str(STEPS), "--warm-start", str(STEPS), "--every", "2", *more]
    subprocess.run(command, check=True, timeout=1800)
    (state,) = (folder / f"out{workers}").glob("adapter_*.training")
    return load_file(state)


@pytest.mark.slow
def test_two_workers_equal_one(tmp_path: Path) -> None:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    script("tools.judges").write_scenes(tmp_path / "pictures", 6)
    one, two = (trained(tmp_path, workers) for workers in (1, 2))
    assert len(one["losses"]) == len(one["studied"]) == STEPS
    for key in (key for key in one if key.startswith("weights.")):
        assert (one[key] - two[key]).abs().max() < 1e-4, key
    kept = load_file(tmp_path / "out2" / "checkpoint.training")
    assert len(kept["losses"]) == STEPS
    assert all(torch.equal(kept[key], two[key]) for key in kept)
