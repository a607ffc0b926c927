"""A training that cannot fit is refused before its first step, with the setting that helps."""

from __future__ import annotations

from typing import Any

import pytest
from support.hosts.process import GraphError
from support.hosts.training import capture_node, register, train_graph

MEGA = 1e6


@pytest.mark.parametrize(
    ("free", "checkpointing", "advice"),
    [
        (250 * MEGA, False, "set batch_size to 2 and raise accumulation"),
        (90 * MEGA, False, "switch on checkpointing"),
        (20 * MEGA, True, "lower resolution"),
        (450 * MEGA, False, None),
    ],
)
def test_the_advice_is_the_first_that_helps(
    host: Any, monkeypatch: pytest.MonkeyPatch, free: float, checkpointing: bool, advice: str | None
) -> None:
    """100 MB a picture and 40 MB for the adapter; how much is free cannot be had for real."""
    import comfy.model_management

    memory = host.module("ipadapter.host.training.memory")
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: free)
    need = memory.Need(40 * MEGA, 400 * MEGA, 4)
    unet = type("Unet", (), {"device": None})
    if advice is None:
        memory.check_fits(need, unet, checkpointing)
    else:
        with pytest.raises(ValueError, match=f"does not fit: it needs about 0.4 GB.*{advice}"):
            memory.check_fits(need, unet, checkpointing)


def test_the_node_refuses_before_the_first_step(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    register(host)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_a, **_k: 1000.0)
    graph = train_graph(steps=2)
    with pytest.raises(GraphError, match="This training does not fit.*switch on checkpointing"):
        host.run({**graph, "capture": capture_node(["2", 0])})
