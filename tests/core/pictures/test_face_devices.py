"""Where faces are read: the device that was chosen, or the CPU with one line in the log."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ipadapter.pictures import faces
from ipadapter.pictures.faces import find_faces, load_faces


def test_providers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["DmlExecutionProvider", "CPUExecutionProvider"],
    )
    assert faces._providers("DirectML") == ["DmlExecutionProvider", "CPUExecutionProvider"]
    assert faces._providers("CPU") == ["CPUExecutionProvider"]
    assert faces._providers("CUDA") == ["CPUExecutionProvider"]
    assert "no CUDAExecutionProvider" in caplog.text
    with pytest.raises(ValueError, match=r"expected one of CPU, CUDA, .* got 'TPU'"):
        faces._providers("TPU")


def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime says that it has CUDA."""
    onnxruntime = pytest.importorskip("onnxruntime")
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


def sessions(
    monkeypatch: pytest.MonkeyPatch, start: Exception | None = None, run: Exception | None = None
) -> list[list[str]]:
    """Sessions that stand for a card of which this machine has none: they claim to run on CUDA, and
    fail when they start or when they run. Returns the providers that sessions were asked for."""
    onnxruntime = pytest.importorskip("onnxruntime")
    kind, asked = onnxruntime.InferenceSession, []
    real_init, real_run = kind.__init__, kind.run

    def init(self: Any, path: Any, *given: Any, providers: list[str], **more: Any) -> None:
        asked.append(list(providers))
        self.on_card = providers[0] != "CPUExecutionProvider"
        if start and self.on_card:
            raise start
        real_init(self, path, *given, providers=["CPUExecutionProvider"], **more)

    def get_providers(self: Any) -> list[str]:
        return ["CUDAExecutionProvider"] * self.on_card + ["CPUExecutionProvider"]

    def run_on(self: Any, *given: Any, **more: Any) -> Any:
        if run and self.on_card:
            raise run
        return real_run(self, *given, **more)

    listed(monkeypatch)
    for name, method in (("__init__", init), ("get_providers", get_providers), ("run", run_on)):
        monkeypatch.setattr(kind, name, method)
    return asked


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.name == "ipadapter"]
    message = record.getMessage()
    assert message.startswith("InsightFace runs on the CPU: onnxruntime lists CUDAExecution")
    return message


def provider_errors() -> list[Exception]:
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    text = "[ONNXRuntimeError] : 1 : FAIL : libcublasLt.so.12: cannot open shared object file\nat x"
    kinds = [RuntimeError, OSError, ValueError, state.Fail, state.EPFail, state.RuntimeException]
    return [kind(text) for kind in kinds]


@pytest.mark.parametrize("when", ["start", "run"])
@pytest.mark.parametrize("kind", range(6))
def test_a_card_that_does_not_work_gives_way_to_the_cpu(
    models: Path,
    photograph: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: int,
    when: str,
) -> None:
    asked = sessions(monkeypatch, **{when: provider_errors()[kind]})
    found = find_faces(load_faces(models, "buffalo_l", "CUDA"), photograph, 224)
    assert len(found.raw) == 1 and asked[-1] == ["CPUExecutionProvider"]
    assert "libcublasLt.so.12" in one_warning(caplog) and "at x" not in caplog.text


def test_a_session_that_moved_to_the_cpu_by_itself_is_said(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """onnxruntime's own fallback: this machine's real sessions, which know no CUDA."""
    pytest.importorskip("insightface")
    listed(monkeypatch)
    with pytest.warns(UserWarning, match="not in available provider names"):
        load_faces(models, "buffalo_l", "CUDA")
    assert "its session runs on CPUExecutionProvider" in one_warning(caplog)


def test_a_card_that_works_is_used_in_silence(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = sessions(monkeypatch)
    analysis = load_faces(models, "buffalo_l", "CUDA")
    assert {model.session.on_card for model in analysis.models.values()} == {True}
    assert asked and all(one == ["CUDAExecutionProvider", "CPUExecutionProvider"] for one in asked)
    assert not caplog.records


def test_a_pack_that_lacks_a_model_is_not_blamed_on_the_card(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(models / "models" / "buffalo_l", tmp_path / "models" / "buffalo_l")
    (tmp_path / "models" / "buffalo_l" / "w600k_r50.onnx").unlink()
    sessions(monkeypatch)
    with pytest.raises(ValueError, match="no face recogniser"):
        load_faces(tmp_path, "buffalo_l", "CUDA")
    assert not caplog.records
