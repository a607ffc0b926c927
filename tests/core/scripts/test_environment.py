"""scripts/tools/environment.py with stand-ins for uv and pip: nothing is downloaded."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from support.hosts.server import ROOT, script

environment = script("tools.environment")

# A stand-in for an installer: notes what it was asked for, and fails where its name is in FAILS.
INSTALLER = """
import os, pathlib, sys
me = pathlib.Path(__file__).parent
with (me.parent / "calls.txt").open("a") as calls:
    calls.write(" ".join([me.name, *sys.argv[1:]]) + "\\n")
print("what", me.name, "says")
sys.exit(me.name in os.environ["FAILS"])
"""
PACKAGED = environment.HOST_FOLDER
HOLD_THE_LOCK = """
import pathlib, sys
sys.path.append(sys.argv[1])
from tools.environment import _only_one
with _only_one():
    pathlib.Path(sys.argv[2]).touch()
    sys.stdin.read()
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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces what runs programs; the list it returns tells what they were asked for."""
    words: list[str] = []

    def run(python: Path, *arguments: str) -> None:
        words.extend(arguments)
        if "venv" in arguments:
            pretend(Path(arguments[-1]) / "Scripts" / "python.exe")
            pretend(Path(arguments[-1]) / "bin" / "python")
        if "--target" in arguments:
            unpacked = Path(arguments[-1]) / PACKAGED
            for name in ("main.py", "folder_paths.py", "requirements.txt", "comfy/sd.py"):
                pretend(unpacked / name)
            pretend(unpacked / environment.HOST_LEAVES)

    monkeypatch.setattr(environment, "_run", run)
    return words


def pretend(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def installers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Stand-ins for uv and pip; returns the file with their calls."""
    for name in ("uv", "pip"):
        pretend(tmp_path / "programs" / name / "__init__.py")
        (tmp_path / "programs" / name / "__main__.py").write_text(INSTALLER, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "programs"))
    return tmp_path / "programs" / "calls.txt"


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
        environment.ready()


def test_groups_are_what_other_programs_read() -> None:
    """Python 3.10 has no reader of TOML, so the script reads lines; newer ones have one."""
    tomllib = pytest.importorskip("tomllib")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    assert {name: environment.group(name) for name in groups} == groups
    assert {"installers", "host", "runtime", "tools", "references"} == groups.keys()


def test_environment_is_made_once(cache: Path, fake_host: Path, asked: list[str]) -> None:
    first = environment.ready(tools=True)
    assert first.host == fake_host
    assert {"venv", "runtime", "einops", "tools", "references", "--no-deps"} <= set(asked)
    assert not any(word.startswith("comfyui-workflow-templates") for word in asked)
    asked.clear()
    assert environment.ready(tools=True) == first
    assert asked == []


def test_packaged_host_is_unpacked_once(
    cache: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    host = environment.ready().host
    assert host == cache / environment.HOST_NAME
    assert (host / "comfy" / "sd.py").is_file()
    assert not (host / environment.HOST_LEAVES).exists()
    assert not list(cache.glob("host-*"))
    assert environment.ready(tools=True).host == host
    assert asked.count("host") == 1


def test_tools_are_added_to_an_environment_without_them(
    cache: Path, fake_host: Path, asked: list[str]
) -> None:
    environment.ready()
    assert "tools" not in asked
    asked.clear()
    environment.ready(tools=True)
    assert "tools" in asked and "venv" not in asked


@pytest.mark.parametrize("error", [KeyboardInterrupt, environment.SetUpError])
def test_interrupted_install_is_made_anew(
    error: type[BaseException],
    cache: Path,
    fake_host: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(python: Path, *wanted: str) -> NoReturn:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(environment, "_install", interrupt)
        with pytest.raises(error) if error is KeyboardInterrupt else contextlib.nullcontext():
            environment.ready()
    environment.ready()
    assert asked.count("venv") == 2


def test_existing_interpreter_serves_where_an_install_fails(
    cache: Path, fake_host: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(python: Path, *wanted: str) -> NoReturn:
        raise environment.SetUpError("no network")

    monkeypatch.setattr(environment, "_install", fail)
    assert environment.ready().python == Path(sys.executable)
    assert asked[-1] == environment.WORKS
    monkeypatch.setattr(environment, "_run", fail)
    with pytest.raises(environment.SetUpError, match="no network"):
        environment.ready()


def test_without_a_host_of_its_own_a_failed_install_ends_it(
    cache: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(python: Path, *wanted: str) -> NoReturn:
        raise environment.SetUpError("no network")

    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment, "_install", fail)
    with pytest.raises(SystemExit, match="no network"):
        environment.ready()


@pytest.mark.parametrize(
    ("fails", "called", "ends"),
    [("", ["uv"], False), ("uv", ["uv", "pip"], False), ("uv pip", ["uv", "pip"], True)],
)
def test_pip_installs_where_uv_fails(
    fails: str,
    called: list[str],
    ends: bool,
    installers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAILS", fails)
    failure = pytest.raises(environment.SetUpError, match="pip install torch failed")
    with failure if ends else contextlib.nullcontext():
        environment._install(Path(sys.executable), "torch")
    calls = installers.read_text("utf-8").splitlines()
    assert [call.split()[0] for call in calls] == called
    assert all(call.endswith(" torch") for call in calls)
    assert f"what {called[-1]} says" in capfd.readouterr().out


def test_uv_keeps_its_files_in_the_cache(
    installers: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told.txt"
    show = f"import os; open({str(told)!r}, 'w').write(os.environ['UV_CACHE_DIR'])"
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    environment._run(Path(sys.executable), "-c", show)
    assert told.read_text("utf-8") == str(cache / "uv")


def test_one_process_at_a_time_makes_environments(cache: Path, tmp_path: Path) -> None:
    """A second one waits; the lock of a killed one is free."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(ROOT / "scripts")]
    first, second = (tmp_path / name for name in ("first", "second"))
    with subprocess.Popen([*command, str(first)], stdin=subprocess.PIPE) as holder:
        appears(first)
        with subprocess.Popen([*command, str(second)], stdin=subprocess.PIPE) as waiter:
            time.sleep(2)
            assert not second.exists()
            holder.kill()
            appears(second)
            waiter.kill()


def appears(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_children_find_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    variables = environment.Environment(Path("python"), Path("host")).variables()
    assert variables["PYTHONPATH"].split(environment.os.pathsep) == ["host", "mine"]
    assert variables["COMFYUI_PATH"] == "host"


def test_exit_code_is_passed_on() -> None:
    this = environment.Environment(Path(sys.executable), Path("host"))
    assert this.run(["-c", "raise SystemExit(7)"]) == 7
