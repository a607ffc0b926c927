"""Many queued prompts on one real server: is memory flat, and is every result still right?

    python scripts/python.py tests/soak/soak.py             20 prompts
    python scripts/python.py tests/soak/soak.py --long      500 prompts, and a bound on the slope
    python scripts/python.py tests/soak/soak.py --prompts N

Weight, reference, mask, adapter and range change from prompt to prompt. Then come interrupts at
random moments, and two clients with different adapters in turn. Resident memory over prompts is
drawn into tests/output/soak.png.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
OUTPUT = TESTS / "output" / "soak.png"
LONG = 500
SLOPE = 10.0  # KB per prompt that may remain after warm-up
GROWTH = 64 << 10  # KB that a short run may grow by after warm-up
ADAPTERS = ("first.safetensors", "second.safetensors")
Graph = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What changes from prompt to prompt."""

    weight: float = 0.8
    colour: int = 0x4080C0
    mask: float = 1.0
    adapter: str = ADAPTERS[0]
    end_at: float = 1.0
    weight_type: str = "linear"

    @classmethod
    def drawn(cls, dice: random.Random) -> Settings:
        """Any of them."""
        return cls(
            round(dice.uniform(-1.0, 3.0), 3),
            dice.randrange(1 << 24),
            round(dice.random(), 3),
            dice.choice(ADAPTERS),
            round(dice.uniform(0.5, 1.0), 3),
            dice.choice(("linear", "ease in", "style transfer", "style transfer precise")),
        )


@dataclass
class Report:
    """Resident memory in KB after each prompt, and what was not as it should be."""

    memory: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def settled(self) -> list[float]:
        """Without the first quarter, the warm-up."""
        return self.memory[len(self.memory) // 4 :]

    @property
    def slope(self) -> float:
        """KB per prompt after warm-up: a median over pairs, which single jumps do not move."""
        kept = list(enumerate(self.settled))
        pairs = [
            (b - a) / (j - i) for i, a in kept for j, b in kept[i + 1 :] if j - i > len(kept) // 4
        ]
        return statistics.median(pairs) if pairs else 0.0

    @property
    def growth(self) -> float:
        """KB from the end of the warm-up to the end."""
        return self.memory[-1] - self.settled[0]

    def __str__(self) -> str:
        return (
            f"{len(self.memory)} prompts in {self.seconds:.0f} s: {self.slope:+.1f} KB per prompt "
            f"after warm-up, {self.growth / 1024:+.1f} MB in all, {len(self.faults)} faults"
        )


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node in API format."""
    return {"class_type": class_type, "inputs": inputs}


def graph(settings: Settings, models: Graph, steps: int = 2) -> Graph:
    """A small picture with an image prompt; `models`: the demo's file names by loader."""
    return {
        "1": node("CheckpointLoaderSimple", **models["CheckpointLoaderSimple"]),
        "2": node("IPAdapterModelLoader", ipadapter_file=settings.adapter),
        "3": node("CLIPVisionLoader", **models["CLIPVisionLoader"]),
        "4": node("EmptyImage", width=48, height=48, batch_size=1, color=settings.colour),
        "5": node("SolidMask", value=settings.mask, width=64, height=64),
        "6": node("CLIPTextEncode", clip=["1", 1], text="a photograph"),
        "7": node("CLIPTextEncode", clip=["1", 1], text="blurry"),
        "8": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "9": node(
            "IPAdapterAdvanced",
            model=["1", 0],
            ipadapter=["2", 0],
            clip_vision=["3", 0],
            image=["4", 0],
            attn_mask=["5", 0],
            weight=settings.weight,
            weight_type=settings.weight_type,
            combine_embeds="concat",
            start_at=0.0,
            end_at=settings.end_at,
            embeds_scaling="V only",
        ),
        "10": node(
            "KSampler",
            model=["9", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["8", 0],
            seed=5,
            steps=steps,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "11": node("VAEDecode", samples=["10", 0], vae=["1", 2]),
        "12": node("SaveImage", images=["11", 0], filename_prefix="soak"),
    }


class Soak:
    """One server, and what has been seen on it."""

    def __init__(self, server: Any, seed: int = 1) -> None:
        import psutil
        from support.server import script

        self.server, self.dice, self.report = server, random.Random(seed), Report()
        self.models, self.script = script("demo").SETTINGS, script("comfy_server")
        self.process = psutil.Process(server.process.pid)
        self.usual = Settings()
        write_adapters(server.base / "models" / "ipadapter", self._demo_adapter())
        self.expected = self.picture(self.usual)

    def picture(self, settings: Settings, client: str = "") -> str:
        """A digest of the pixels that these settings give."""
        entry = self.server.wait(self.server.queue(graph(settings, self.models), client))
        digest = self._digest(entry)
        self.server.fetch("/history", json.dumps({"clear": True}).encode())  # the server's own heap
        return digest

    def prompts(self, count: int) -> None:
        """Queue `count` different prompts; the usual one must give what it gave at first."""
        started = time.monotonic()
        for _ in range(count):
            self.picture(Settings.drawn(self.dice))
            self.report.memory.append(self.process.memory_info().rss / 1024)
        self.report.seconds += time.monotonic() - started
        self.check("the last prompt")

    def interrupts(self, count: int) -> None:
        """Interrupt long prompts somewhere between loading and saving; the next must be right."""
        for number in range(count):
            long = graph(Settings.drawn(self.dice), self.models, steps=200)
            prompt = self.server.queue(long)
            time.sleep(self.dice.uniform(0.0, 1.0))
            self.server.fetch("/interrupt", b"{}")
            deadline = time.monotonic() + 60
            while not self.server.get(f"/history/{prompt}") and time.monotonic() < deadline:
                time.sleep(0.2)
                self.server.fetch("/interrupt", b"{}")  # one sent before the start is forgotten
            messages = self.server.wait(prompt)["status"]["messages"]
            if "execution_interrupted" not in [event for event, _ in messages]:
                self.report.faults.append(f"interrupt {number} did not stop the prompt")
            self.check(f"the prompt after interrupt {number}")

    def clients(self, rounds: int) -> None:
        """Two clients queue at the same time, with different adapters, in turn."""
        mine = Settings(adapter=ADAPTERS[0], colour=0xC03030)
        other = Settings(adapter=ADAPTERS[1], colour=0x30C030, weight=1.0)
        wanted = [self.picture(settings) for settings in (mine, other)]
        if len({*wanted, self.expected}) < 3:
            self.report.faults.append("different adapters and references give the same picture")
        ids = [
            self.server.queue(graph(settings, self.models), client)
            for _ in range(rounds)
            for settings, client in ((mine, "one"), (other, "two"))
        ]
        for number, prompt in enumerate(ids):
            entry = self.server.wait(prompt)
            if self._digest(entry) != wanted[number % 2]:
                self.report.faults.append(f"interleaved prompt {number} differs from alone")

    def check(self, what: str) -> None:
        """Queue the usual prompt again."""
        if self.picture(self.usual) != self.expected:
            self.report.faults.append(f"{what} gives another picture than the first")

    def _digest(self, entry: dict[str, Any]) -> str:
        from PIL import Image

        if error := self.script.error_of(entry):
            raise RuntimeError(error)
        (images,) = self.script.saved_images(entry).values()
        with Image.open(io.BytesIO(self.server.view(images[0]))) as opened:
            return hashlib.sha256(opened.tobytes()).hexdigest()

    def _demo_adapter(self) -> Path:
        name = self.models["IPAdapterModelLoader"]["ipadapter_file"]
        return self.server.base / "models" / "ipadapter" / name


def write_adapters(folder: Path, source: Path) -> None:
    """Two adapters: the demo's, and one with its layers' values turned round."""
    from safetensors.torch import load_file, save_file

    state = load_file(source)
    save_file(state, folder / ADAPTERS[0])
    turned = {key: value.flip(0) if "to_v_ip" in key else value for key, value in state.items()}
    save_file({key: value.contiguous() for key, value in turned.items()}, folder / ADAPTERS[1])


def draw(report: Report, path: Path) -> None:
    """Resident memory over prompts, as a line."""
    from PIL import Image, ImageDraw

    width, height, edge = 900, 400, 50
    low, high = min(report.memory), max(report.memory)
    span = max(high - low, 1.0)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    last = max(len(report.memory) - 1, 1)
    points = [
        (
            edge + number / last * (width - 2 * edge),
            height - edge - (value - low) / span * (height - 2 * edge),
        )
        for number, value in enumerate(report.memory)
    ]
    pen.rectangle((edge, edge, width - edge, height - edge), outline="#bbb")
    pen.line(points, fill="#0060c0", width=2)
    pen.text((edge, 15), f"resident memory of the server: {report}", "black")
    pen.text((edge, edge - 15), f"{high / 1024:.0f} MB", "black")
    pen.text((edge, height - edge + 5), f"{low / 1024:.0f} MB", "black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def soak(server: Any, prompts: int, interrupts: int, rounds: int) -> Report:
    """All of it on one server."""
    run = Soak(server)
    run.prompts(prompts)
    run.interrupts(interrupts)
    run.clients(rounds)
    return run.report


def main() -> int:
    """0 if every result was right and memory stayed flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--long", action="store_true", help=f"{LONG} prompts")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the PNG to write")
    options = parser.parse_args()
    count = LONG if options.long else options.prompts
    spec = importlib.util.spec_from_file_location("conftest", TESTS / "conftest.py")
    if spec is None or spec.loader is None:
        raise ImportError("tests/conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    from support.server import running

    with tempfile.TemporaryDirectory() as base, running(Path(base)) as server:
        report = soak(server, count, interrupts=max(3, count // 25), rounds=max(2, count // 50))
    draw(report, options.output)
    sys.stdout.write("\n".join((str(report), *report.faults, str(options.output))) + "\n")
    flat = report.slope < SLOPE if count >= LONG else report.growth < GROWTH
    return 0 if flat and not report.faults else 1


if __name__ == "__main__":
    sys.exit(main())
