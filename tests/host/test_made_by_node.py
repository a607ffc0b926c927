"""An adapter made by the node alone, from a folder of pictures and captions, on the demo base, and
judged as the shipped one is.

A quarter of an hour long, so it runs when asked for, on a quiet machine:
`python scripts/test.py tests/host/test_made_by_node.py -m slow -s`.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from support.hosts.server import script
from support.hosts.training import train_graph
from support.models.demoset import SHOWN, Demo, load_demo

PICTURES, MINUTES = 800, 15
SETTINGS = {
    "steps": 60,
    "warm_start": 700,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "loss_weighting": "picture",
    "drop_text": 0.6,  # an image alone is what is judged
    "drop_image": 0.05,
    "drop_both": 0.05,
    "held_out": 0.02,
    "average": 0.0,
    "resolution": 128,
    "precision": "fp32",
    "seed": 11,
}


def made(demo: Demo, host: Any, family: str) -> tuple[Any, float]:
    """The adapter, and the minutes that it took, encoding included."""
    folder = host.base / "input" / "scenes"
    if not folder.is_dir():
        script("tools.judges").write_scenes(folder, PICTURES)
    graph = train_graph(**SETTINGS, family=family, image_folder="scenes")
    widgets = {k: v for k, v in graph["2"]["inputs"].items() if not isinstance(v, list)}
    given = {
        **widgets,
        "model": demo.model,
        "clip": demo.clip,
        "vae": demo.vae,
        "clip_vision": demo.vision,
    }
    begin = time.perf_counter()
    pipeline, _curve = host.call("IPAdapterTrain", **given)
    return pipeline, (time.perf_counter() - begin) / 60


def figures(demo: Demo, adapter: Any) -> dict[str, float]:
    """As test_meaning has them."""
    images = demo.sample(demo.applied(adapter, demo.references), count=len(SHOWN))
    return demo.figures(images)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["standard", "Plus"])
def test_it_is_no_worse_than_the_shipped_one(host: Any, family: str) -> None:
    demo = load_demo(host)
    torch.set_num_threads(2)
    adapter, minutes = made(demo, host, family)
    ours, shipped = figures(demo, adapter), figures(demo, demo.adapter(family))
    for name, found in (("by the node", ours), ("shipped", shipped)):
        print(f"\n{family}, {name}: {found}", end="")
    print(f"\n{minutes:.1f} minutes")
    assert minutes <= MINUTES
    assert ours["background"] <= max(shipped["background"], 0.06)
    assert ours["object"] <= max(shipped["object"], 0.06)
    assert ours["overlap"] >= shipped["overlap"] - 0.02
    assert ours["shapes"] >= shipped["shapes"]
