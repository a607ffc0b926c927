"""A file larger than memory passes through a small part of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipadapter.adapters import linear
from ipadapter.adapters.key_values import project_rows
from ipadapter.files.mapped import give_back
from ipadapter.files.tensors import open_tensor_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do it themselves")
ROWS, WIDTH = 4096, 4096  # 32 MiB in bf16
MIB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch file of one large matrix: random rows first and last, and holes between."""
    path = tmp_path_factory.mktemp("mapped") / "large.bin"
    weight = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
    weight[::1024] = torch.randn(len(weight[::1024]), WIDTH, generator=torch.Generator()).bfloat16()
    torch.save({"weight": weight}, path)
    return path


def mapped_bytes() -> int:
    """Pages of files that count as this process's memory."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssFile")


def read(weight: Tensor) -> tuple[Tensor, int]:
    """One row through a weight, and how much of its file is in memory afterwards."""
    before = mapped_bytes()
    rows = torch.ones(1, WIDTH)
    return project_rows(rows, weight, "cpu"), mapped_bytes() - before


def test_what_was_read_does_not_stay(file: Path) -> None:
    weight = open_tensor_file(file).tensors["weight"]
    first, stays = read(weight)
    again, _ = read(weight)
    assert stays < 8 * MIB
    assert torch.equal(first, again) and first[0, 0] != 0 and first[0, 1] == 0


def test_the_judge_sees_what_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "give_back", lambda _tensor: None)
    _, stays = read(open_tensor_file(file).tensors["weight"])
    assert stays > 24 * MIB


def test_nothing_that_was_written_is_dropped(file: Path) -> None:
    """Neither a mapping that somebody has changed, nor memory that is no file's."""
    weight = open_tensor_file(file).tensors["weight"]
    weight[5] = 7.0
    own = torch.full((ROWS, WIDTH), 3.0, dtype=torch.bfloat16)
    for tensor, expected in ((weight, 7.0), (own, 3.0)):
        give_back(tensor)
        assert (tensor[5] == expected).all()
    assert (open_tensor_file(file).tensors["weight"][5] == 0).all()


def test_a_part_of_a_page_and_other_layouts_are_left_alone(file: Path) -> None:
    weight = open_tensor_file(file).tensors["weight"]
    for part in (weight[:1, :8], weight[:, ::2], weight[:0], weight.to("meta")):
        give_back(part)
    assert weight[0].any()
