"""The same graph with the same seed gives the same bits, in a new process as well."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()
CHILD = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
def load(name, path):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
test = Path(sys.argv[1])
load("conftest", test.parents[1] / "conftest.py")
from support.hosts.process import start
host = start(Path(sys.argv[2]))
print("digest", load("determinism", test).digest(host), flush=True)
host.release()
"""


def digest(host: Any) -> str:
    """Of the latents of a graph with all that is random, several adapters and a mask."""
    from support.hosts.scene import Scene, picture
    from support.models.unets import TINY_SD15

    scene = Scene.build(host, TINY_SD15, plus=True)
    settings = {"type": "shuffle", "strength": 0.6, "blur": 2}
    (noise,) = host.call("IPAdapterNoise", image_optional=picture(4), **settings)
    mask = torch.linspace(0, 1, 256).view(1, 16, 16)
    model = scene.apply(
        image=picture(1, images=3),
        image_negative=noise,
        weight_type="style transfer precise",
        combine_embeds="norm average",
        attn_mask=mask,
    )
    model = scene.apply(model, image=picture(2), weight=0.4, weight_type="ease in-out", end_at=0.7)
    latents = scene.sample(model, sampler_name="euler_ancestral", steps=3)
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()


def test_a_new_process_gives_the_same_bits(host: Any, tmp_path: Path) -> None:
    torch.rand(5)  # the state of the process' own generator must not matter
    command = [sys.executable, "-c", CHILD, str(HERE), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert child.returncode == 0, child.stderr[-2000:]
    digests = [line.split()[1] for line in child.stdout.splitlines() if line.startswith("digest ")]
    assert digests == [digest(host)]
