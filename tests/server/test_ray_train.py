"""Training from the command line in one and in two processes, on the demo base; a worker that dies.

Minutes long, so it runs when asked for: `python scripts/test.py tests/server -m slow -k ray_train`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.hosts.server import ROOT, script

STEPS = 6


def command(folder: Path, output: str, workers: int) -> list[str]:
    models = script("tools.demo_models").demo_models()
    made = [sys.executable, str(ROOT / "clients" / "ray_train.py"), str(folder / "pictures")]
    made += ["--checkpoint", str(models / "checkpoints" / "demoset.safetensors")]
    made += ["--encoder", str(models / "clip_vision" / "demoset")]
    made += ["--output", str(folder / output), "--workers", str(workers)]
    made += ["--cpu", "--precision", "fp32", "--resolution", "128", "--batch-size", "2"]
    return [*made, "--steps", str(STEPS), "--warm-start", str(STEPS), "--every", "2"]


def trained(folder: Path, output: str, workers: int) -> dict[str, torch.Tensor]:
    """Run the command; returns the training state that it leaves."""
    subprocess.run(command(folder, output, workers), check=True, timeout=1800)
    (state,) = (folder / output).glob("adapter_*.training")
    return load_file(state)


def killed(folder: Path, output: str) -> int:
    """Run two workers and kill one after the first checkpoint; what the command returns."""
    running = subprocess.Popen(command(folder, output, 2))
    checkpoint = folder / output / "checkpoint.training"
    until = time.monotonic() + 1800
    while not checkpoint.is_file() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    return running.wait(timeout=300)


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Largest difference of the weights."""
    names = [name for name in one if name.startswith("weights.")]
    return max(float((one[name] - two[name]).abs().max()) for name in names)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds its workers in /proc")
def test_two_workers_equal_one_and_one_goes_on_after_two(tmp_path: Path) -> None:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    script("tools.judges").write_scenes(tmp_path / "pictures", 6)
    one, two = (trained(tmp_path, f"out{workers}", workers) for workers in (1, 2))
    assert len(one["losses"]) == len(one["studied"]) == STEPS
    kept = load_file(tmp_path / "out2" / "checkpoint.training")
    assert all(torch.equal(kept[key], two[key]) for key in kept)
    assert killed(tmp_path, "killed") == 1  # stops whole, never half
    assert not list((tmp_path / "killed").glob("adapter_*"))
    resumed = trained(tmp_path, "killed", 1)
    print(f"\ntwo workers: {apart(one, two):.1e} apart; killed: {apart(one, resumed):.1e}")
    assert apart(one, two) < 1e-4
    assert apart(one, resumed) < 1e-4
