"""Nothing in a file runs as code, and nothing in the pack could run code, commands or requests."""

from __future__ import annotations

import ast
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ipadapter.adapters.checkpoint import read_checkpoint
from ipadapter.library.scan import read_contents
from ipadapter.pictures.embeds import load_embeds

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "__init__.py", ROOT / "nodes.py", *sorted((ROOT / "ipadapter").rglob("*.py"))]
# What reaches the network, starts programs, runs text as code, or unpickles.
FOREIGN = {
    "aiohttp", "code", "ctypes", "dill", "ftplib", "http", "httpx", "joblib", "marshal",
    "multiprocessing", "pip", "requests", "runpy", "shelve", "shutil", "smtplib", "socket",
    "subprocess", "urllib", "webbrowser", "xmlrpc",
}  # fmt: skip
RUNNING = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
PROCESSES = {"system", "popen", "fork", "kill", "startfile"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a source file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_reach_nothing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not FOREIGN & {name.split(".")[0] for name in names}, ast.unparse(node)
    for name, call in calls(path):
        place = f"{path.name}:{call.lineno}"
        assert name not in RUNNING, place
        assert not (name.startswith("os.") and name[3:].startswith(tuple(PROCESSES))), place
        assert not name.startswith(("pickle.load", "numpy.load", "np.load", "os.exec")), place
        if name == "torch.load":
            safe = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert safe.get("weights_only") == "True", place


class Reduced:
    """Makes a folder when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.mark,)


class Stated(Reduced):
    """Makes it while its state is set."""

    def __reduce__(self) -> tuple:
        return torch.nn.Module, (), {"x": Reduced(Path(self.mark))}


class Itemised(Reduced):
    """Makes it as an item of a list."""

    def __reduce__(self) -> tuple:
        return list, (), None, iter([Reduced(Path(self.mark))])


def by_import(mark: Path) -> bytes:
    """Opcodes by hand, as no pickler writes them: INST of protocol 0 behind protocol 2's head."""
    return b"\x80\x02" + b"(S" + repr(str(mark)).encode() + b"\nios\nmkdir\n."


def by_name(mark: Path) -> bytes:
    """`eval` by STACK_GLOBAL of protocol 4 behind protocol 2's head."""
    text = f"__import__('os').mkdir({str(mark)!r})".encode()
    names = b"".join(b"\x8c" + bytes([len(name)]) + name for name in (b"builtins", b"eval"))
    return b"\x80\x02" + names + b"\x93(X" + len(text).to_bytes(4, "little") + text + b"tR."


def zipped(body: bytes) -> bytes:
    """A torch file whose pickle is `body`."""
    stream = io.BytesIO()
    torch.save({"image_proj": {}}, stream)
    made = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, body if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save({"image_proj": value}, stream)
    return stream.getvalue()


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "reduce": lambda mark: pickle.dumps({"image_proj": Reduced(mark)}, 2),
    "state": lambda mark: pickle.dumps(Stated(mark), 2),
    "items": lambda mark: pickle.dumps(Itemised(mark), 2),
    "inst": by_import,
    "eval": by_name,
    "zip with reduce": lambda mark: saved(Reduced(mark)),
    "zip with inst": lambda mark: zipped(by_import(mark)),
    "zip with eval": lambda mark: zipped(by_name(mark)),
    "protocol 0": lambda mark: pickle.dumps({"image_proj": Reduced(mark)}, 0),
    "protocol 5": lambda mark: pickle.dumps({"image_proj": Reduced(mark)}, 5),
}


@pytest.mark.parametrize("name", ["x.bin", "x.ipadpt", "x.safetensors", "x.pt"])
@pytest.mark.parametrize("how", PICKLES)
def test_code_in_a_file_never_runs(tmp_path: Path, how: str, name: str) -> None:
    path, mark = tmp_path / name, tmp_path / "mark"
    path.write_bytes(PICKLES[how](mark))
    assert read_contents(path).problem.startswith(name)
    for read in (read_checkpoint, load_embeds):
        with pytest.raises(ValueError, match=rf"^{name}"):
            read(path)
    assert not mark.exists()


@pytest.mark.parametrize("how", ["reduce", "eval"])
def test_the_files_would_leave_a_mark_elsewhere(tmp_path: Path, how: str) -> None:
    """They are live ammunition: Python's own reader runs them."""
    pickle.loads(PICKLES[how](tmp_path / "mark"))  # noqa: S301
    assert (tmp_path / "mark").is_dir()
