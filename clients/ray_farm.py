"""Runs a folder of pictures through several ComfyUI workers with Ray.

    python clients/ray_farm.py PICTURES --output FOLDER --models MODELS --graph GRAPH.json

GRAPH.json is a graph in API format that draws from saved embeds; without it workflows/api's
load_embeds.json. MODELS is a ComfyUI models folder; without it the demo's small models draw. Ray is
needed (`pip install ray`), or --local for one worker without it. COMFYUI_PATH names the ComfyUI to
use, in an environment that has all it needs; without it there is the packaged one of the demo.
Every actor owns a ComfyUI of its own; on a cluster Ray places them on its machines. PICTURES,
MODELS and FOLDER must be seen by all.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.append(str(SCRIPTS))

from tools.comfy_server import ComfyServer, ServerError, link_folder, make_base  # noqa: E402
from tools.environment import NAME, ROOT, Environment, cache_folder, ready, say  # noqa: E402

KINDS = (".png", ".jpg", ".jpeg", ".webp")
EMBEDS = "embeds"  # folder below the shared input folder
GRAPH = ROOT / "workflows" / "api" / "load_embeds.json"
Graph = dict[str, dict[str, Any]]
Each = Callable[[str, Sequence[tuple]], Iterable[str]]  # a worker's method, for many arguments


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
    loaders = [
        value
        for node in template.values()
        if node["class_type"].startswith("IPAdapterEmbeds")
        for input_name, value in node["inputs"].items()
        if input_name in ("ipadapter", "clip_vision")
    ]
    graph = {number: template[number] for link in loaders for number in _before(template, link[0])}
    encode: dict[str, Any] = {"ipadapter": loaders[0], "image": ["picture", 0], "weight": 1.0}
    for number, node in template.items():
        if node["class_type"] in ("CLIPVisionLoader", "IPAdapterImageEncoderLoader"):
            graph[number] = node
            encode["clip_vision"] = [number, 0]
    graph["picture"] = {"class_type": "LoadImage", "inputs": {"image": picture}}
    graph["encode"] = {"class_type": "IPAdapterEncoder", "inputs": encode}
    save = {"embeds": ["encode", 0], "filename_prefix": f"{EMBEDS}/{name}"}
    graph["save"] = {"class_type": "IPAdapterSaveEmbeds", "inputs": save}
    return graph


def _before(graph: Graph, number: str) -> list[str]:
    """A node and all that it needs."""
    links = [value for value in graph[number]["inputs"].values() if isinstance(value, list)]
    return [number, *(other for link in links for other in _before(graph, link[0]))]


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


def read_template(path: Path) -> Graph:
    """A graph that draws from saved embeds. ServerError: it lacks a node for that."""
    graph: Graph = json.loads(path.read_text("utf-8"))
    kinds = {node["class_type"] for node in graph.values()}
    needed = ("IPAdapterEmbeds", "IPAdapterLoadEmbeds", "SaveImage", "KSampler")
    if missing := [kind for kind in needed if kind not in kinds]:
        raise ServerError(f"{path} has no {', '.join(missing)}; see workflows/api/load_embeds.json")
    return graph


@dataclass(frozen=True)
class Draw:
    """What every worker draws with."""

    graph: Graph
    models: Path
    environment: Environment


def draw_with(given: argparse.Namespace) -> Draw:
    """The graph, the models and the ComfyUI that were asked for; says what they are."""
    host = os.environ.get("COMFYUI_PATH")
    environment = Environment(Path(sys.executable), Path(host)) if host else ready()
    graph, models = read_template(given.graph), given.models
    what = f"the models in {models}"
    if models is None:
        models, what = cache_folder() / "demoset", "the demo's small models (--models: yours)"
        ensure = "from tools.demo_models import demo_models; demo_models()"
        if environment.run(["-c", f"import sys; sys.path.append({str(SCRIPTS)!r}); {ensure}"]):
            raise ServerError("the demo's models cannot be written; the reason is above")
        from tools.demo_models import configured

        graph = configured(graph)
    say(f"Draws {given.graph} with {what}, {given.workers} workers, ComfyUI {environment.host}")
    return Draw(graph, models.resolve(), environment)


class Worker:
    """A ComfyUI that draws: one per actor, on a port of its own."""

    def __init__(self, number: int, shared: Path, given: Draw) -> None:
        self.graph = given.graph
        base = shared / "workers" / str(number)
        shutil.rmtree(base, ignore_errors=True)
        make_base(base, {NAME: ROOT}, given.models)
        (base / "input").rmdir()
        link_folder(shared / "input", base / "input")
        self.server = ComfyServer(given.environment.python, given.environment.host, base)
        self.server.start()

    def encode(self, job: Job) -> str:
        """Write a picture's embeds; returns the job's name."""
        self.server.run(encode_graph(self.graph, job.picture, job.name))
        return job.name

    def draw(self, job: Job, embeds: str, prompt: str, output: Path) -> str:
        """Draw from a picture's embeds; returns the job's name."""
        graph = draw_graph(self.graph, embeds, job.name, prompt)
        partial = job.result(output).with_suffix(".part")  # a killed run leaves no half a picture
        partial.write_bytes(self.server.pictures(graph)[0])
        partial.replace(job.result(output))
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
    try:
        draw = draw_with(given)
        (shared / EMBEDS).mkdir(parents=True, exist_ok=True)
        shutil.copytree(given.pictures, shared, dirs_exist_ok=True)
        with local(output, draw) if given.local else on_ray(given.workers, output, draw) as each:
            done("encoded", each("encode", [(job,) for job in jobs if not job.embeds(shared)]))
            todo = [job for job in jobs if not job.result(output).exists()]
            asked = [(job, job.embeds(shared), given.prompt, output) for job in todo]
            done("drawn", each("draw", asked))
    except (ServerError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


@contextmanager
def local(output: Path, draw: Draw) -> Iterator[Each]:
    """One worker in this process."""
    worker = Worker(0, output, draw)
    try:
        yield lambda name, asked: (getattr(worker, name)(*one) for one in asked)
    finally:
        worker.stop()


@contextmanager
def on_ray(count: int, output: Path, draw: Draw) -> Iterator[Each]:
    """Workers as actors of Ray; they see the same modules as this script."""
    import ray

    paths = [Path(__file__).resolve().parent, SCRIPTS, os.environ.get("PYTHONPATH")]
    seen = os.pathsep.join(str(path) for path in paths if path)
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": seen}})
    actor = ray.remote(num_cpus=1)(Worker)
    workers = [actor.remote(number, output, draw) for number in range(count)]
    pool = ray.util.ActorPool(workers)
    try:
        yield lambda name, asked: pool.map_unordered(
            lambda worker, one: getattr(worker, name).remote(*one), asked
        )
    finally:
        ray.get([worker.stop.remote() for worker in workers])
        ray.shutdown()


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
    parser.add_argument("--graph", type=Path, default=GRAPH, help="draws from saved embeds")
    parser.add_argument("--models", type=Path, help="a models folder (default: the demo's)")
    parser.add_argument("--local", action="store_true", help="one worker, without Ray")
    parser.add_argument("--workers", type=int, default=2, help="ComfyUIs to run (default: 2)")
    parser.add_argument("--prompt", default="", help="text prompt for all pictures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
