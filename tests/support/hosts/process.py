"""A real ComfyUI inside the test process.

`start` may be called once per process: the host reads its command line at import. It needs
COMFYUI_PATH (`scripts/test.py` and `scripts/python.py` set it); without it these tests are skipped.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")


class GraphError(Exception):
    """A node of a graph failed; the attributes are what the user would see."""

    def __init__(self, node_id: str, node_type: str, message: str, traceback: str) -> None:
        super().__init__(f"{node_type} (node {node_id}): {message}\n{traceback}")
        self.node_id = node_id
        self.node_type = node_type
        self.message = message


class _Listener:
    """Stands in for the server object that PromptExecutor reports to, and keeps what it reports."""

    def __init__(self) -> None:
        self.client_id = "test"
        self.last_node_id: str | None = None
        self.last_prompt_id = ""
        self.sockets_metadata: dict[str, Any] = {}
        self.events: list[tuple[str, Any]] = []

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.events.append((event, data))


@dataclass(eq=False)
class Host:
    """The running host: its base directory, its node classes, and the pack loaded into it."""

    base: Path
    pack: ModuleType
    _listener: _Listener = field(default_factory=_Listener)
    _executor: Any = None

    @property
    def node_ids(self) -> set[str]:
        """Ids of the nodes that this pack registered."""
        module = f"custom_nodes.{ROOT.name}"
        registered = host_nodes().NODE_CLASS_MAPPINGS.items()
        return {name for name, node in registered if _origin(node) == module}

    def node(self, node_id: str) -> Any:
        """The class registered under `node_id`, the host's own or the pack's."""
        return host_nodes().NODE_CLASS_MAPPINGS[node_id]

    def call(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Run one node outside a graph, as the executor would call it; returns its outputs."""
        import torch

        node = self.node(node_id)
        target = node.PREPARE_CLASS_CLONE({}) if hasattr(node, "define_schema") else node()
        with torch.inference_mode():
            output = getattr(target, node.FUNCTION)(**inputs)
            if asyncio.iscoroutine(output):
                output = asyncio.run(output)
        if isinstance(output, dict):
            return tuple(output.get("result", ()))
        return tuple(getattr(output, "args", output) or ())

    def module(self, name: str) -> ModuleType:
        """A module of the pack as the host loaded it: `module("ipadapter.host.apply")`."""
        return importlib.import_module(f"{self.pack.__name__}.{name}")

    def models(self, kind: str) -> Path:
        """The folder of one kind of model (`checkpoints`, `ipadapter` ...), made if missing."""
        folder = self.base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Validate and execute a graph in API format; returns the UI outputs by node id.

        Raises `GraphError` for a node that fails, `ValueError` for a graph that the host refuses.
        """
        prompt_id = uuid.uuid4().hex
        executor = self._prompt_executor()
        self._listener.events.clear()
        asyncio.run(self._validate_and_execute(executor, graph, prompt_id))
        for event, data in executor.status_messages:
            if event == "execution_error":
                trace = "".join(data["traceback"])
                message = data["exception_message"].rstrip("\n")
                raise GraphError(data["node_id"], data["node_type"], message, trace)
        return dict(executor.history_result["outputs"])

    def release(self) -> None:
        """Spare the host's patchers their clean-up, which fails once the interpreter is ending."""
        from comfy.model_patcher import ModelPatcher

        del ModelPatcher.__del__

    @property
    def events(self) -> list[tuple[str, Any]]:
        """What the last `run` reported to the browser: (event, data) pairs."""
        return list(self._listener.events)

    def _prompt_executor(self) -> Any:
        if self._executor is None:
            from execution import CacheType, PromptExecutor

            # Bounds of other kinds of cache, which the host reads whatever the kind: each newer
            # one by another name. ComfyUI 0.3.52 takes them in another argument.
            known = inspect.signature(PromptExecutor).parameters
            sizes = {"cache_args": defaultdict[str, int](int)} if "cache_args" in known else {}
            self._executor = PromptExecutor(self._listener, cache_type=CacheType.CLASSIC, **sizes)
        return self._executor

    async def _validate_and_execute(
        self, executor: Any, graph: dict[str, Any], prompt_id: str
    ) -> None:
        import execution

        valid, error, outputs, node_errors = await execution.validate_prompt(prompt_id, graph, None)
        if not valid:
            raise ValueError(f"the host refuses the graph: {error} {node_errors}")
        await executor.execute_async(graph, prompt_id, {"client_id": "test"}, outputs)


def _origin(node: Any) -> str:
    return getattr(node, "RELATIVE_PYTHON_MODULE", "")


def host_nodes() -> ModuleType:
    """ComfyUI's own `nodes` module."""
    import nodes

    return nodes


def start(base: Path, options: tuple[str, ...] = ("--cpu",)) -> Host:
    """Import ComfyUI on the CPU, isolated in the base directory `base`, and load the pack.

    options: what its command line says besides.
    """
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    if path not in sys.path:
        sys.path.insert(0, path)
    arguments = ["main.py", *options, "--base-directory", str(base), "--disable-api-nodes"]
    saved, sys.argv = sys.argv, arguments
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv now
    finally:
        sys.argv = saved
    # As main.py does, before `nodes` puts comfy/ first on sys.path, whose utils.py would be found.
    importlib.import_module("utils.extra_config")
    return asyncio.run(_load(base))


async def _load(base: Path) -> Host:
    nodes = host_nodes()
    await nodes.init_public_apis()
    await nodes.init_builtin_extra_nodes()
    if not await nodes.load_custom_node(str(ROOT), module_parent="custom_nodes"):
        raise RuntimeError("the host could not import the pack; its log above says why")
    return Host(base=base, pack=sys.modules[str(ROOT).replace(".", "_x_")])
