"""Trains an adapter in several processes, on one machine or on many with Ray.

    python clients/ray_train.py PICTURES --checkpoint FILE --encoder FILE --output FOLDER
    ... --workers 8 --ray --preset paper

PICTURES holds pictures and captions as IPAdapter Train takes them. FILE is a checkpoint with its
VAE and text encoder, and an image encoder: a file, or a Hugging Face folder. COMFYUI_PATH names the
ComfyUI to use; run this with the Python that has all it needs. Without --ray the workers are
processes of this machine; with it (`pip install "ray[train]"`) Ray places them, one GPU each where
there are GPUs, and starts them again when one dies. PICTURES, FILE and FOLDER must be seen by all.

First every worker encodes its part of the pictures, once: what is made is kept in FOLDER/encoded.
Then each takes its part of every batch (ipadapter/training/share.py), so the adapter is the same on
any number of workers. FOLDER/checkpoint.training is written every --every steps; the same command
goes on from it, on another number of workers too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.append(str(SCRIPTS))

from demoset.host import use_host  # noqa: E402
from tools.pack import pack_module  # noqa: E402

# Of TrainSettings; batch_size is that of all workers together.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "short": {"steps": 2000, "batch_size": 8, "warm_start": 500},
        # arXiv 2308.06721, section 4.1: 10 million pictures, 8 GPUs with 8 each, a million steps.
        "paper": {
            "steps": 1_000_000,
            "batch_size": 64,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
        },
    }
)


@dataclass(frozen=True)
class Job:
    """What every worker is told; plain values, as it travels."""

    pictures: str
    checkpoint: str
    encoder: str
    output: str
    family: str
    resolution: int
    precision: str
    every: int
    cpu: bool
    settings: dict[str, Any]

    @property
    def state(self) -> Path:
        """Where the training stands."""
        return Path(self.output) / "checkpoint.training"


def train(job: Job) -> None:
    """One worker's whole work, in a process group that has begun."""
    if "comfy" not in sys.modules:
        use_host(cpu=job.cpu)
    import torch

    session, recipe = pack_module("host.training.session"), pack_module("training.recipe")
    families, frozen = pack_module("adapters.families"), pack_module("host.training.frozen")
    share = pack_module("training.share").distributed()
    model, sources, vision = inputs_of(job, share)
    settings = recipe.TrainSettings(**job.settings)
    asked = session.Recipe(
        families.Family(job.family), precision=frozen.Precision(job.precision), settings=settings
    )
    with torch.inference_mode():  # as the host runs its nodes
        training = session.train_adapter(
            model, vision, sources, asked, resumed(job), keeper(job, share.rank)
        )
        if share.rank == 0:
            stem = Path(job.output) / "adapter"
            saved = session.save_adapter(training.adapter, stem, torch.float16, with_state=True)
            print(f"{saved.path} {training.notice}", flush=True)


def inputs_of(job: Job, share: Any) -> tuple[Any, Any, Any]:
    """The MODEL, the training's inputs, and the image encoder."""
    import comfy.sd

    data, store = pack_module("host.training.data"), pack_module("training.store")
    folder = pack_module("training.folder")
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(job.checkpoint)[:3]
    vision = pack_module("host.encoders").load_encoder(Path(job.encoder))
    kept = store.Store(Path(job.output) / "encoded")
    found = folder.read_folder(Path(job.pictures), store=kept)
    pictures = data.Pictures(len(found.paths), found.image, found.content, found.captions)
    sources = data.TrainingInputs(
        pictures, job.resolution, vae=vae, clip=clip, store=kept, share=share
    )
    return model, sources, vision


def resumed(job: Job) -> Any:
    """The adapter as the last checkpoint has it, if there is one."""
    from safetensors.torch import load_file

    if not job.state.is_file():
        return None
    states = pack_module("training.state")
    state = states.TrainState.from_tensors(load_file(job.state), job.state.name)
    return states.trained_adapter(state, job.state.name, {})


def keeper(job: Job, rank: int) -> Callable[[Any], None]:
    """Writes a checkpoint now and then, whole or not at all; the first worker's task."""
    write_state = pack_module("training.folder").write_state

    def keep(stage: Any) -> None:
        if rank == 0 and stage.steps % job.every == 0:
            write_state(job.state, stage.state().tensors())
            print(f"step {stage.steps} of {stage.total}", flush=True)

    return keep


def worker(rank: int, world: int, port: int, told: dict[str, Any]) -> None:
    """A process of this machine."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world) if told["cpu"] else 1)
    if not told["cpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(rank % max(1, torch.cuda.device_count()))
    where = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    train(Job(**told))


def on_this_machine(job: Job, world: int) -> int:
    """Run the workers as processes; 0 if all came to the end. One that dies ends them all."""
    spawned = multiprocessing.get_context("spawn")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    told = asdict(job)
    workers = [spawned.Process(target=worker, args=(n, world, port, told)) for n in range(world)]
    for one in workers:
        one.start()
    while any(one.is_alive() for one in workers):
        for one in workers:
            one.join(0.5)
        if any(one.exitcode for one in workers):
            for one in workers:
                one.kill()
    return 0 if all(one.exitcode == 0 for one in workers) else 1


def on_ray(job: Job, world: int) -> int:
    """Run the workers with Ray Train, which starts all again from the checkpoint if one dies."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    paths = [str(Path(__file__).resolve().parent), str(SCRIPTS), os.environ.get("PYTHONPATH", "")]
    known = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "COMFYUI_PATH": os.environ.get("COMFYUI_PATH", ""),
    }
    ray.init(runtime_env={"env_vars": known})
    trainer = TorchTrainer(
        lambda told: train(Job(**told)),
        train_loop_config=asdict(job),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=world, use_gpu=not job.cpu),
        run_config=RunConfig(storage_path=job.output, failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("pictures", type=Path, help="folder of pictures with captions")
    add("--checkpoint", type=Path, required=True, help="base with VAE and text encoder")
    add("--encoder", type=Path, required=True, help="image encoder to train for")
    add("--output", type=Path, required=True, help="folder for the adapter and what is kept")
    add("--preset", choices=tuple(PRESETS), default="short", help="steps, batch, rates")
    add("--family", choices=("standard", "Plus"), default="standard")
    add("--resolution", type=int, default=512, help="side of the square that is trained on")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    add("--workers", type=int, default=2)
    add("--every", type=int, default=500, help="steps from one checkpoint to the next")
    add("--ray", action="store_true", help="workers on Ray's machines instead of this one's")
    add("--cpu", action="store_true", help="no GPU")
    for name, kind in (("steps", int), ("batch_size", int), ("warm_start", int), ("seed", int)):
        add(f"--{name.replace('_', '-')}", type=kind, help="instead of the preset's")
    add("--learning-rate", type=float, help="instead of the preset's")
    return parser.parse_args(arguments)


def job_of(given: argparse.Namespace) -> Job:
    """What was asked for, over the preset."""
    names = ("steps", "batch_size", "warm_start", "seed", "learning_rate")
    own = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return Job(
        str(given.pictures.resolve()),
        str(given.checkpoint.resolve()),
        str(given.encoder.resolve()),
        str(given.output.resolve()),
        given.family,
        given.resolution,
        given.precision,
        given.every,
        given.cpu,
        {**PRESETS[given.preset], **own},
    )


def main(arguments: Sequence[str]) -> int:
    """Train; 0 if the adapter is written."""
    given = parse(arguments)
    job = job_of(given)
    Path(job.output).mkdir(parents=True, exist_ok=True)
    return (on_ray if given.ray else on_this_machine)(job, given.workers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
