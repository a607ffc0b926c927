"""Runs a folder of pictures through several ComfyUI workers with Ray.

`python clients/ray_farm.py PICTURES --output FOLDER --workers 2`, in an environment that has Ray
(`pip install ray`) and everything ComfyUI needs, with COMFYUI_PATH set. Every actor owns a ComfyUI
of its own; on a cluster Ray places them on its machines. PICTURES and FOLDER must be seen by all.

First every picture is encoded once; the embeds are files in FOLDER/input, which all workers share.
Then the pictures are drawn from these files, on whichever worker is free. What is there already is
not done again, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.append(str(SCRIPTS))

from tools.comfy_server import ComfyServer, link_folder, make_base  # noqa: E402
from tools.environment import NAME, ROOT, say  # noqa: E402
from tools.random_models import configured, random_models  # noqa: E402

KINDS = (".png", ".jpg", ".jpeg", ".webp")
EMBEDS = "embeds"  # folder below the shared input folder
Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One picture of the data set, under a name that no other has."""

    name: str
    picture: str

    def embeds(self, folder: Path) -> str | None:
        """Its embeds file, as Load Embeds names it; None if there is none yet."""
        found = sorted((folder / EMBEDS).glob(f"{self.name}_*.safetensors"))
        return f"{EMBEDS}/{found[-1].name}" if found else None

    def result(self, folder: Path) -> Path:
        return folder / f"{self.name}.png"


def jobs_in(folder: Path) -> list[Job]:
    """A job per picture below a folder, in order; the name keeps folders and kinds apart."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in KINDS and p.is_file())
    paths = [path.relative_to(folder).as_posix() for path in found]
    return [Job(path.replace("/", "__").replace(".", "-"), path) for path in paths]


def encode_graph(template: Graph, picture: str, name: str) -> Graph:
    """The part of a template that encodes: one picture, one encoder, one file."""
    loader = _first(template, "IPAdapterUnifiedLoader")
    checkpoint = template[loader]["inputs"]["model"][0]
    graph = {number: template[number] for number in (checkpoint, loader)}
    graph["picture"] = {"class_type": "LoadImage", "inputs": {"image": picture}}
    encode = {"ipadapter": [loader, 1], "image": ["picture", 0], "weight": 1.0}
    graph["encode"] = {"class_type": "IPAdapterEncoder", "inputs": encode}
    save = {"embeds": ["encode", 0], "filename_prefix": f"{EMBEDS}/{name}"}
    graph["save"] = {"class_type": "IPAdapterSaveEmbeds", "inputs": save}
    return graph


def draw_graph(template: Graph, embeds: str, name: str, prompt: str) -> Graph:
    """A template that loads embeds, for one file and one prompt."""
    graph: Graph = json.loads(json.dumps(template))
    graph[_first(graph, "IPAdapterLoadEmbeds")]["inputs"]["embeds"] = embeds
    graph[_first(graph, "SaveImage")]["inputs"]["filename_prefix"] = name
    if prompt:
        positive = graph[_first(graph, "KSampler")]["inputs"]["positive"][0]
        graph[positive]["inputs"]["text"] = prompt
    return graph


def _first(graph: Graph, kind: str) -> str:
    return next(number for number, node in graph.items() if node["class_type"] == kind)


def template(name: str) -> Graph:
    """A graph of workflows/api with the demo's models: put your own graph and models here."""
    return configured(json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8")))


class Worker:
    """A ComfyUI that draws: one per actor, on a port of its own."""

    def __init__(self, number: int, shared: Path, models: Path) -> None:
        base = shared / "workers" / str(number)
        shutil.rmtree(base, ignore_errors=True)
        make_base(base, {NAME: ROOT}, models)
        (base / "input").rmdir()
        link_folder(shared / "input", base / "input")
        host = Path(os.environ["COMFYUI_PATH"])
        self.server = ComfyServer(Path(sys.executable), host, base)
        self.server.start()

    def encode(self, job: Job) -> str:
        """Write a picture's embeds; returns the job's name."""
        self.server.run(encode_graph(template("load_embeds"), job.picture, job.name))
        return job.name

    def draw(self, job: Job, embeds: str, prompt: str, output: Path) -> str:
        """Draw from a picture's embeds; returns the job's name."""
        graph = draw_graph(template("load_embeds"), embeds, job.name, prompt)
        job.result(output).write_bytes(self.server.pictures(graph)[0])
        return job.name

    def stop(self) -> None:
        """End this worker's ComfyUI."""
        self.server.stop()


def main(arguments: Sequence[str]) -> int:
    """Encode, then draw; 0 if every picture has its result."""
    given = parse(arguments)
    output = given.output.resolve()
    jobs = jobs_in(given.pictures)
    shared = output / "input"
    (shared / EMBEDS).mkdir(parents=True, exist_ok=True)
    shutil.copytree(given.pictures, shared, dirs_exist_ok=True)
    import ray

    # The actors see the same modules as this script.
    paths = [Path(__file__).resolve().parent, SCRIPTS, os.environ.get("PYTHONPATH")]
    seen = os.pathsep.join(str(path) for path in paths if path)
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": seen}})
    actor = ray.remote(num_cpus=1)(Worker)
    workers = [actor.remote(number, output, random_models()) for number in range(given.workers)]
    pool = ray.util.ActorPool(workers)
    try:
        todo = [job for job in jobs if not job.embeds(shared)]
        done("encoded", pool.map_unordered(lambda worker, job: worker.encode.remote(job), todo))
        files = {job.name: job.embeds(shared) for job in jobs}
        todo = [job for job in jobs if not job.result(output).exists()]
        prompt = given.prompt
        drawn = pool.map_unordered(
            lambda worker, job: worker.draw.remote(job, files[job.name], prompt, output), todo
        )
        done("drawn", drawn)
    finally:
        ray.get([worker.stop.remote() for worker in workers])
        ray.shutdown()
    return 0


def done(what: str, names: Iterable[str]) -> None:
    """Say each name as its work ends, and how long all of it took."""
    started = time.monotonic()
    ended = []
    for name in names:
        ended.append(name)
        say(f"{time.monotonic() - started:6.1f} s  {what} {name}")
    say(f"{len(ended)} {what} in {time.monotonic() - started:.1f} s")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pictures", type=Path, help="folder of pictures, searched below too")
    parser.add_argument("--output", type=Path, required=True, help="folder for results and embeds")
    parser.add_argument("--workers", type=int, default=2, help="ComfyUIs to run (default: 2)")
    parser.add_argument("--prompt", default="", help="text prompt for all pictures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
