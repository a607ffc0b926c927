"""InstantX's file for Flux as it is published: a torch file of 5.3 GB, read where it lies."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.transformers import WIDE_FLUX

from ipadapter.adapters import adapter as adapters
from ipadapter.adapters.adapter import Adapter
from ipadapter.adapters.checkpoint import read_checkpoint
from ipadapter.errors import Problem
from ipadapter.files import tensors
from ipadapter.files.kinds import Kind
from ipadapter.library.scan import read_contents

MB = 1_000_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux counts it")


@pytest.fixture(scope="module")
def bench() -> Any:
    return importlib.import_module("bench.large_file")


@pytest.fixture(scope="module")
def published(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole file, of which less than a megabyte is on the disk."""
    return bench.sparse_instantx(tmp_path_factory.mktemp("flux") / "ip-adapter.bin")


def test_it_is_what_it_is(published: Path) -> None:
    found = read_contents(published)
    assert published.stat().st_size > 5.2e9 and not found.problem
    assert found.kind is Kind.ADAPTER and found.spec
    assert found.spec.summary == "InstantX for Flux.1, 128 tokens, needs SigLIP so400m (1152)"
    adapter = Adapter.from_checkpoint(read_checkpoint(published))
    assert adapter.layer_ids == tuple(range(57)) and adapter.digest


@linux
def test_loading_it_takes_no_memory(bench: Any, published: Path) -> None:
    (name, took), *_ = [next(bench.measure(published))]
    assert name == "load" and took.own + took.mapped < 40 * MB


@linux
def test_a_small_one_passes_through_a_part_of_it(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps at real widths, with one block of each kind and an eighth of the tokens; small as
    it is, it is treated as the whole one. The pages of the file under the projector, which is read
    at once, are the system's to take back, and nothing of them stays."""
    path = bench.sparse_instantx(tmp_path / "small.bin", WIDE_FLUX, tokens=16)
    assert path.stat().st_size > 400 * MB
    monkeypatch.setattr(tensors, "_HUGE", 1)
    monkeypatch.setattr(adapters, "_LARGE_PROJECTOR", 1)
    before = bench.resident()
    steps = dict(bench.measure(path, WIDE_FLUX))
    assert all(took.own < 100 * MB for took in steps.values())
    assert steps["keys and values"].mapped < 80 * MB  # a layer, not all of them
    assert sum(bench.resident()) - sum(before) < 160 * MB


@linux
def test_the_judge_sees_a_projector_that_stays(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.sparse_instantx(tmp_path / "small.bin", WIDE_FLUX, tokens=16)
    monkeypatch.setattr(tensors, "_HUGE", 1)
    before = bench.resident()
    steps = dict(bench.measure(path, WIDE_FLUX))
    assert len(steps) == 3 and sum(bench.resident()) - sum(before) > 250 * MB


def test_what_a_picture_gives_is_remembered_whole(published: Path) -> None:
    """Layers come one after another: a memory that is too small for all of them keeps none."""
    spec = Adapter.from_checkpoint(read_checkpoint(published)).spec
    assert 2 * 4 * spec.num_tokens * sum(spec.layer_widths) <= adapters._KEPT


@pytest.mark.parametrize("left", [0.6, 0.999999])
@pytest.mark.parametrize("preallocated", [False, True])
def test_half_a_download(published: Path, tmp_path: Path, left: float, preallocated: bool) -> None:
    """Cut off, or as long as it should be with zeros where the rest would come."""
    path, whole = tmp_path / "ip-adapter.bin", published.stat().st_size
    beginning = published.open("rb").read(1 << 16)
    path.write_bytes(beginning)
    os.truncate(path, whole if preallocated else int(left * whole))
    for reading in (lambda: read_checkpoint(path), lambda: raise_problem(path)):
        with pytest.raises(ValueError, match="truncated or damaged torch file") as caught:
            reading()
        assert "download it again" in str(caught.value)
        assert str(caught.value).endswith(f"[{Problem.FILE_BROKEN.value}]")


def raise_problem(path: Path) -> None:
    """What lists and the doctor say of a file, as an error."""
    raise Problem.FILE_BROKEN(read_contents(path).problem)


def test_one_that_holds_code_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    path = tmp_path / "ip-adapter.bin"
    torch.save({"image_proj": {"proj.0.weight": torch.ones(2)}, "ip_adapter": Bad()}, path)
    with pytest.raises(ValueError, match="contains Python objects or code"):
        read_checkpoint(path)
    assert not (tmp_path / "run").exists()


def test_a_name_says_nothing(published: Path, tmp_path: Path) -> None:
    """By content, also with the extension of another format."""
    other = tmp_path / "faceid_portrait.safetensors"
    other.symlink_to(published)
    spec = read_contents(other).spec
    assert spec and spec.base_name == "Flux.1" and spec.num_tokens == 128
