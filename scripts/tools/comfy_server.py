"""Starts a real ComfyUI server on this machine, talks to it, and stops it whatever happens.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")
START_SECONDS = 300
# The server ends with the process that started it, even a killed one: its end of the pipe closes.
GUARD = """
import os, runpy, sys, threading
def watch():
    while os.read(0, 1):
        pass
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ServerError(Exception):
    """The server does not start, refuses a graph, or fails in one of its nodes."""


def link_folder(target: Path, link: Path) -> None:
    """Make `target` visible as `link`: a symbolic link, on Windows a junction, else a copy."""
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi

        try:
            _winapi.CreateJunction(str(target), str(link))
        except OSError:
            shutil.copytree(target, link, ignore=shutil.ignore_patterns(".*", "output"))


def make_base(base: Path, packs: dict[str, Path], models: Path | None = None) -> Path:
    """An isolated base directory with these packs by name, and perhaps shared models."""
    for name in FOLDERS:
        if name != "models" or models is None:
            (base / name).mkdir(parents=True, exist_ok=True)
    if models is not None:
        link_folder(models, base / "models")
    for name, folder in packs.items():
        link_folder(folder, base / "custom_nodes" / name)
    return base


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class ComfyServer:
    """A ComfyUI in the base directory `base`, started and stopped as a context; on the CPU unless
    told otherwise."""

    python: Path
    host: Path
    base: Path
    port: int = field(default_factory=free_port)
    # Survives the process that started it, and the end of the `with` block.
    keep: bool = False
    cpu: bool = True
    threads: int | None = None  # that it computes with; None: as many as there are cores
    page: Path | None = None  # the folder of another editor than the host's own
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The file that everything the server prints goes to."""
        return self.base / "server.log"

    def __enter__(self) -> ComfyServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self.keep:
            self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise ServerError(f"port {self.port} is taken by another program; choose another")
        main = str(self.host / "main.py")
        command = [str(self.python), *([main] if self.keep else ["-c", GUARD, main])]
        command += ["--cpu"] if self.cpu else []
        command += ["--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--front-end-root", str(self.page)] if self.page else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.host,
                env=self._environment(),
                stdin=subprocess.DEVNULL if self.keep else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A process group of its own: Ctrl-C reaches us alone, stopping reaches all of it.
                start_new_session=sys.platform != "win32",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._wait_for_answer()

    def stop(self) -> None:
        """End the server and all that it started; safe to call twice."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        else:
            process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the server says of its nodes, by class."""
        return self.get("/object_info")

    def get(self, path: str) -> Any:
        """The JSON that the server answers to GET `path`."""
        return json.loads(self.fetch(path))

    def fetch(self, path: str, data: bytes | None = None) -> bytes:
        """The body of the answer to a GET, or with `data` (JSON) to a POST."""
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def queue(self, graph: dict[str, Any], client_id: str = "") -> str:
        """Queue a graph in API format; returns its prompt id. `ServerError`: it is refused."""
        body = json.dumps({"prompt": graph, "client_id": client_id or uuid.uuid4().hex})
        try:
            return json.loads(self.fetch("/prompt", body.encode()))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ServerError(_refusal(error.read().decode("utf-8", "replace"))) from error

    def wait(self, prompt_id: str, seconds: float = 600) -> dict[str, Any]:
        """The history entry of a queued graph once it has ended, well or not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return entry
            self._check_alive()
            time.sleep(0.1)
        raise ServerError(f"the graph has not ended after {seconds:.0f} s")

    def run(self, graph: dict[str, Any], seconds: float = 600) -> dict[str, Any]:
        """Queue a graph; returns its history entry. `ServerError`: refused, or a node fails."""
        entry = self.wait(self.queue(graph), seconds)
        if problem := error_of(entry):
            raise ServerError(problem)
        return entry

    def pictures(
        self, graph: dict[str, Any], seconds: float = 600, kind: str = "output"
    ) -> list[bytes]:
        """Run a graph; returns the files of the pictures that it saves, in order; of kind "temp",
        those that it only shows."""
        saved = saved_images(self.run(graph, seconds), kind)
        return [self.view(file) for files in saved.values() for file in files]

    def view(self, image: dict[str, str]) -> bytes:
        """The file of an image that a node has saved, as its UI output names it."""
        return self.fetch("/view?" + urllib.parse.urlencode(image))

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-30:])

    def _environment(self) -> dict[str, str]:
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **threads}

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                self.get("/system_stats")
                return
            except OSError:
                self._check_alive()
                time.sleep(0.2)
        raise ServerError(f"the server does not answer after {START_SECONDS} s\n{self.tail()}")

    def _check_alive(self) -> None:
        if self.process is None or self.process.poll() is not None:
            raise ServerError(f"the server has ended; its last lines:\n{self.tail()}")


def error_of(entry: dict[str, Any]) -> str | None:
    """What the user reads if the graph of this history entry failed."""
    for event, data in entry["status"]["messages"]:
        if event == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
    return None


def saved_images(entry: dict[str, Any], kind: str = "output") -> dict[str, list[dict[str, str]]]:
    """What a graph has saved as images, by node id in order; other nodes may report text, say."""
    outputs = sorted(entry["outputs"].items(), key=lambda output: int(output[0]))
    images = {node: output.get("images", ()) for node, output in outputs}
    saved = {node: [one for one in ones if one["type"] == kind] for node, ones in images.items()}
    return {node: ones for node, ones in saved.items() if ones}


def _refusal(body: str) -> str:
    """The server's reasons for refusing a graph, one line each."""
    try:
        answer = json.loads(body)
    except json.JSONDecodeError:
        return body
    lines = [answer["error"]["message"]]
    for node_id, node in answer.get("node_errors", {}).items():
        for error in node["errors"]:
            name = f"{node['class_type']} (node {node_id})"
            lines.append(f"{name}: {error['message']}: {error['details']}")
    return "\n".join(lines)
