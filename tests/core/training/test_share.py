"""Two processes, connected by gloo, against one at the same batch size."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.references.toy_training import whole

from ipadapter.training.recipe import BatchDraw
from ipadapter.training.share import ALONE, Share
from ipadapter.training.state import TrainState

ROOT = Path(__file__).resolve().parents[3]
STEPS = 20
CHILD = """
import sys
from support.references.toy_training import one_of_two
*numbers, out = sys.argv[1:]
one_of_two(*map(int, numbers), out)
"""
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
Tensors = dict[str, torch.Tensor]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_on_two(out: Path, stop: int = 1000) -> Tensors:
    """Train in two processes. Started anew: a fork of a process that has threads, as other tests
    leave them, may stand still."""
    port = free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *map(str, (rank, port, STEPS, stop, out))], env=PATHS
        )
        for rank in range(2)
    ]
    assert [process.wait(240) for process in both] == [0, 0]
    return torch.load(out, weights_only=True)


def apart(one: Tensors, two: Tensors) -> float:
    """The largest difference of weights and losses."""
    assert one.keys() == two.keys()
    told = [key for key in one if key.startswith("weights.") or key in ("losses", "studied")]
    return max(float((one[key] - two[key]).abs().max()) for key in told)


def test_two_processes_equal_one_and_one_goes_on_for_two(tmp_path: Path) -> None:
    one, two = whole(STEPS, 1000, None, ALONE).tensors(), run_on_two(tmp_path / "two.pt")
    assert len(one["losses"]) == len(one["studied"]) == STEPS
    assert apart(one, two) < 1e-5
    assert torch.equal(one["generator"], two["generator"])
    stopped = run_on_two(tmp_path / "stopped.pt", stop=STEPS + 7)
    assert len(stopped["losses"]) == 7
    resumed = whole(STEPS, 1000, TrainState.from_tensors(stopped, "kept"), ALONE)
    assert apart(one, resumed.tensors()) < 1e-5


def test_the_parts_are_the_whole_batch() -> None:
    draw = BatchDraw(*(torch.arange(6) for _ in range(5)))
    parts = [Share(rank, 3).of(draw).samples.tolist() for rank in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(6))
    assert {len(part) for part in parts} == {2}


def test_batches_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 4 and there are 3 processes"):
        Share(0, 3).check(4)
