"""A torch file larger than memory passes through a small part of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ipadapter.adapters.key_values import project_rows
from ipadapter.files import tensors
from ipadapter.files.tensors import open_tensor_file

ROWS, WIDTH, LAYERS = 2048, 2048, 6  # 8 MiB in bf16 each
MIB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch file of some large matrices."""
    path = tmp_path_factory.mktemp("mapped") / "large.bin"
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(ROWS, WIDTH, generator=generator) for _ in range(LAYERS))
    torch.save({str(number): weight.bfloat16() for number, weight in enumerate(weights)}, path)
    return path


def mapped_bytes() -> int:
    """Pages of files that count as this process's memory."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssFile")


def stays(file: Path) -> int:
    """How much of the file is in memory after a row went through all its matrices."""
    opened, rows = open_tensor_file(file).tensors, torch.ones(1, WIDTH)
    project_rows(rows, opened["0"], "cpu")
    before = mapped_bytes()
    for key in opened:
        project_rows(rows, opened[key], "cpu")
    return mapped_bytes() - before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize(("huge", "least", "most"), [(1 << 30, 32, 64), (1, -8, 10)])
def test_layers_of_a_huge_file_do_not_stay(
    file: Path, monkeypatch: pytest.MonkeyPatch, huge: int, least: int, most: int
) -> None:
    monkeypatch.setattr(tensors, "_HUGE", huge)
    assert least * MIB <= stays(file) <= most * MIB


def test_it_holds_the_same_numbers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = open_tensor_file(file).tensors
    monkeypatch.setattr(tensors, "_HUGE", 1)
    again = open_tensor_file(file).tensors
    assert again.shapes() == kept.shapes()
    assert all(torch.equal(again[key], kept[key]) for key in kept)
