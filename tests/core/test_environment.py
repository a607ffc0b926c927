"""The logic of scripts/tools/environment.py, with a stand-in for pip: nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.server import script

environment = script("tools.environment")

FAKE_PIP = """
import pathlib, sys
calls = pathlib.Path(sys.argv[0]).with_name("calls.txt")
previous = calls.read_text() if calls.exists() else ""
calls.write_text(previous + " ".join(sys.argv[1:]) + "\\n")
print("Downloading torch-2.11.0-cp311-x86_64.whl (530.2 MB)")
sys.exit(len(previous.splitlines()) < FAILURES)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGE_PROMPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def fake_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    host = tmp_path / "ComfyUI"
    host.mkdir()
    for name in ("main.py", "folder_paths.py"):
        (host / name).write_text("", "utf-8")
    lines = (
        "comfyui-frontend-package==1.0\ncomfyui-workflow-templates==1\n\n#note\neinops # maths\n"
    )
    (host / "requirements.txt").write_text(lines, "utf-8")
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    return host


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces what downloads; the list it returns tells what was asked for."""
    asked: list[str] = []

    def make_venv(folder: Path) -> None:
        interpreter = environment.interpreter(folder)
        interpreter.parent.mkdir(parents=True, exist_ok=True)
        interpreter.write_text("", "utf-8")
        asked.append("venv")

    monkeypatch.setattr(environment, "_make_venv", make_venv)
    monkeypatch.setattr(environment, "_check", lambda python: None)
    monkeypatch.setattr(environment, "_install", lambda python, wanted: asked.extend(wanted))
    monkeypatch.setattr(environment, "_pip", lambda python, arguments: asked.extend(arguments))
    monkeypatch.setattr(environment, "_serves", lambda python: False)
    return asked


def fake_pip(folder: Path, failures: int) -> Path:
    (folder / "pip").mkdir()
    program = FAKE_PIP.replace("FAILURES", str(failures))
    (folder / "pip" / "__main__.py").write_text(program, "utf-8")
    (folder / "pip" / "__init__.py").write_text("", "utf-8")
    return folder / "pip" / "calls.txt"


def test_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_PROMPT_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/someone")
    assert environment.cache_folder() == Path("/var/someone/image-prompt-adapter")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert environment.cache_folder().parent == Path.home() / "Library" / "Caches"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert environment.cache_folder() == Path("/local/image-prompt-adapter")


def test_host_starts_without_its_media_packages(fake_host: Path) -> None:
    assert environment.host_requirements(fake_host) == ["comfyui-frontend-package==1.0", "einops"]


def test_key_follows_the_requirements(fake_host: Path) -> None:
    before = environment.key(fake_host)
    assert before == environment.key(fake_host) != environment.key(None)
    (fake_host / "requirements.txt").write_text("einops\n", "utf-8")
    assert environment.key(fake_host) != before


def test_folder_without_comfyui_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(environment.SetUpError, match=r"COMFYUI_PATH is .* no main\.py"):
        environment.ensure()


def test_environment_is_made_once(cache: Path, fake_host: Path, install: list[str]) -> None:
    first = environment.ensure(tools=True)
    assert first.host == fake_host
    assert {"torch", "einops", "requests", "pytest", "--no-deps"} <= set(install)
    install.clear()
    assert environment.ensure(tools=True) == first
    assert install == []


def test_tools_are_added_to_an_environment_without_them(
    cache: Path, fake_host: Path, install: list[str]
) -> None:
    environment.ensure()
    assert "pytest" not in install
    install.clear()
    environment.ensure(tools=True)
    assert "pytest" in install and "venv" not in install


def test_interrupted_install_is_made_anew(
    cache: Path, fake_host: Path, install: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(python: Path, wanted: Any) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(environment, "_install", interrupt)
        with pytest.raises(KeyboardInterrupt):
            environment.ensure()
    environment.ensure()
    assert install.count("venv") == 2


def test_existing_interpreter_serves_where_an_install_fails(
    cache: Path, fake_host: Path, install: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(python: Path, wanted: Any) -> NoReturn:
        raise environment.SetUpError("no network")

    monkeypatch.setattr(environment, "_install", fail)
    with pytest.raises(environment.SetUpError, match="no network"):
        environment.ensure()
    monkeypatch.setattr(environment, "_serves", lambda python: True)
    assert environment.ensure().python == Path(sys.executable)


def test_pip_is_tried_once_more(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_pip(tmp_path, failures=1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment._pip(Path(sys.executable), ["install", "torch"])
    assert len(calls.read_text("utf-8").splitlines()) == 2
    assert "downloading torch (530.2 MB)" in capsys.readouterr().out


def test_pip_that_fails_twice_is_shown(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, failures=2)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(environment.SetUpError, match=r"pip install failed(.|\n)*530\.2 MB"):
        environment._pip(Path(sys.executable), ["install", "torch"])


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Downloading numpy-2.4.6-cp311.whl (16.2 MB)\n", "  downloading numpy (16.2 MB)"),
        ("  Downloading ruff-0.17.6.whl.metadata (25 kB)\n", None),
        ("Collecting numpy\n", None),
        ("Installing collected packages: a, b, c\n", "  installing 3 packages"),
    ],
)
def test_progress_shows_large_steps_only(line: str, shown: bool) -> None:
    assert environment.progress(line) == shown


def test_children_find_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    variables = environment.Environment(Path("python"), Path("host")).variables()
    assert variables["PYTHONPATH"].split(environment.os.pathsep) == ["host", "mine"]
    assert variables["COMFYUI_PATH"] == "host"


def test_exit_code_is_passed_on() -> None:
    this = environment.Environment(Path(sys.executable), Path("host"))
    assert this.run(["-c", "raise SystemExit(7)"]) == 7
