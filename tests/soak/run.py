"""The soak: many prompts on one server, interrupts at random moments, two clients."""

from __future__ import annotations

import hashlib
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from support.hosts.server import ROOT, script

from ipadapter.adapters.checkpoint import read_checkpoint
from ipadapter.pictures.embeds import load_embeds

from .graphs import (
    ADAPTERS,
    LONG_WORK,
    SAVED,
    Settings,
    graph,
    node,
    plain_graph,
    write_models,
)
from .report import Report

PROBE = {"soak_probe": ROOT / "tests" / "soak" / "probe"}
CACHE = 200  # KB that each of the pack's caches may hold: full within a hundred prompts
CENSUS = 10  # prompts from one count of what is alive to the next
# What may not be more at the end, as every count follows the same settings, and by how many KB.
COUNTED = ("AttentionPatch", "Injection", "Adapter", "ModelPatcher", "tensors")
SPARE_KB = {"tensor_kb": 256, "cache_kb": 2 * CACHE}


class Soak:
    """One server, and what has been seen on it."""

    def __init__(self, server: Any, adapters: bool = True, leak: bool = False) -> None:
        """adapters: False for the control, the same graph without any. leak: keep every MODEL."""
        self.server, self.script = server, script("tools.comfy_server")
        self.make, self.leak = graph if adapters else plain_graph, leak
        self.dice, self.report = random.Random(1), Report()
        self.usual = Settings()
        self.noting = False
        self._finish(server.queue({"1": node("SoakBudget", kilobytes=CACHE)}))
        self.expected = self.picture(self.usual)

    def picture(self, settings: Settings, census: bool = False) -> str:
        """A digest of the pixels that these settings give."""
        made = self.make(settings)
        wires = {"model": made["10"]["inputs"]["model"], "images": ["11", 0]}
        made["13"] = node("SoakProbe", **wires, census=census, keep=self.leak)
        entry = self._finish(self.server.queue(made))
        if self.noting:
            self._note(settings, json.loads(entry["outputs"]["13"]["text"][0]))
        return self._digest(entry)

    def prompts(self, count: int) -> None:
        """Queue `count` different prompts; the usual one must give what it gave at first."""
        started, self.noting = time.monotonic(), True
        for number in range(count):
            self.picture(Settings.drawn(self.dice))
            if number % CENSUS == 0 or number == count - 1:
                self.picture(self.usual, census=True)
        self.report.seconds, self.noting = time.monotonic() - started, False
        self.check("the last prompt")
        self._judge()

    def interrupts(self, count: int) -> None:
        """Interrupt long work of every kind at random moments; the next prompt must be right, and
        every file that was written must be whole."""
        for number in range(count):
            for kind, long_work in LONG_WORK.items():
                prompt = self.server.queue(long_work(Settings.drawn(self.dice)))
                self._interrupt(prompt, self.dice.uniform(0.0, 3.0))
                self._where(kind, self.server.wait(prompt))
                self.check(f"the prompt after interrupt {number} of {kind}")
        self.files()

    def clients(self, rounds: int) -> None:
        """Two clients queue at the same time, with different adapters, in turn."""
        mine = Settings(adapter=ADAPTERS[0], colour=0xC03030)
        other = Settings(adapter=ADAPTERS[1], colour=0x30C030, weight=1.0)
        wanted = [self.picture(settings) for settings in (mine, other)]
        if len({*wanted, self.expected}) < 3:
            self.report.faults.append("different adapters and references give the same picture")
        ids = [
            self.server.queue(self.make(settings), client)
            for _ in range(rounds)
            for settings, client in ((mine, "one"), (other, "two"))
        ]
        for number, prompt in enumerate(ids):
            if self._digest(self._finish(prompt, clear=False)) != wanted[number % 2]:
                self.report.faults.append(f"interleaved prompt {number} differs from alone")

    def check(self, what: str) -> None:
        """Queue the usual prompt again."""
        if self.picture(self.usual) != self.expected:
            self.report.faults.append(f"{what} gives another picture than the first")

    def files(self) -> None:
        """Read everything that was saved."""
        folders: dict[str, Callable[[Path], Any]] = {
            "models/ipadapter": lambda path: dict(read_checkpoint(path).ip_adapter),
            "input": load_embeds,
        }
        for folder, read in folders.items():
            for path in sorted((self.server.base / folder).glob(f"*{SAVED}*")):
                self.report.files += 1
                if path.suffix not in (".safetensors", ".training"):
                    self.report.faults.append(f"{path.name} was left behind")
                elif path.suffix == ".safetensors":
                    read(path)  # raises for a file that is not whole

    def _interrupt(self, prompt: str, seconds: float) -> None:
        """Interrupt after so many seconds, and until the prompt has ended."""
        time.sleep(seconds)
        deadline = time.monotonic() + 60
        while not self.server.get(f"/history/{prompt}") and time.monotonic() < deadline:
            self.server.fetch("/interrupt", b"{}")  # one sent before the start is forgotten
            time.sleep(0.3)

    def _where(self, kind: str, entry: dict[str, Any]) -> None:
        """Count what the interrupt hit."""
        where = "finished"
        for event, data in entry["status"]["messages"]:
            if event == "execution_interrupted":
                where = data["node_type"]
            elif event == "execution_error":
                self.report.faults.append(f"{kind}: {data['exception_message']}")
        hit = f"{kind} in {where}"
        self.report.interrupted[hit] = self.report.interrupted.get(hit, 0) + 1

    def _note(self, settings: Settings, told: dict[str, Any]) -> None:
        """Keep what the probe told."""
        self.report.memory.append(told["resident"])
        if "census" in told:
            number = len(self.report.memory) - 1
            self.report.census[number] = told["census"]
            self.report.trimmed[number] = told["trimmed"]
            if told["in_use"] is not None:
                self.report.in_use[number] = told["in_use"]
        seen = self.report.patches.setdefault(settings.weight_type, [])
        if told["patches"] not in seen:
            seen.append(told["patches"])

    def _judge(self) -> None:
        """What must not grow, and what must be the same for every MODEL."""
        for name, most in {**dict.fromkeys(COUNTED, 0), **SPARE_KB}.items():
            gained = self.report.gained().get(name, 0)
            if gained > most:
                self.report.faults.append(f"{gained} more {name} are alive than after warm-up")
        for kind, seen in self.report.patches.items():
            if len(seen) > 1:
                self.report.faults.append(f"MODELs of {kind} have different patches: {seen}")

    def _finish(self, prompt: str, clear: bool = True) -> dict[str, Any]:
        entry = self.server.wait(prompt)
        if error := self.script.error_of(entry):
            raise RuntimeError(error)
        if clear:  # the history is the server's own memory
            self.server.fetch("/history", json.dumps({"clear": True}).encode())
        return entry

    def _digest(self, entry: dict[str, Any]) -> str:
        (images,) = self.script.saved_images(entry).values()
        with Image.open(io.BytesIO(self.server.view(images[0]))) as opened:
            return hashlib.sha256(opened.tobytes()).hexdigest()


def with_adapters(server: Any, prompts: int, interrupts: int, rounds: int) -> Report:
    """All of it on one server, which has the probe."""
    write_models(server.base / "models")
    run = Soak(server)
    run.prompts(prompts)
    run.interrupts(interrupts)
    run.clients(rounds)
    return run.report


def control(server: Any, prompts: int) -> Report:
    """The same number of prompts without an adapter on another server: the host's own memory."""
    run = Soak(server, adapters=False)
    run.prompts(prompts)
    return run.report
