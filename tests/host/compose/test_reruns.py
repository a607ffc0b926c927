"""Re-runs, branches and bypasses through the host's own executor and cache: the same graph gives
the same bits, whatever ran in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from support.hosts.compose import conditioning, text
from support.hosts.neighbours import stack_foreign
from support.hosts.wires import tiny_wires
from support.references.interface import defaults
from torch import Tensor

Link = list[Any]


class Wires:
    """Loaders and prompts in one node; its outputs stay cached."""

    made: ClassVar[dict[str, Any]] = {}
    RETURN_TYPES = (
        "MODEL",
        "IPADAPTER",
        "CLIP_VISION",
        "IMAGE",
        "CONDITIONING",
        "CONDITIONING",
        "LATENT",
    )
    FUNCTION = "get"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def get(self) -> tuple[Any, ...]:
        wires = [self.made[name] for name in ("model", "ipadapter", "clip_vision", "image")]
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        return (*wires, conditioning(text(1)), conditioning(text(2)), latent)


class Stack:
    """A pack that stacks onto occupied slots; `tag` makes the host run it again."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "stack"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "tag": ("INT", {"default": 0})}}

    def stack(self, model: Any, tag: int) -> tuple[Any]:
        return (stack_foreign(model),)


class Keep:
    """Where a branch of the graph ends."""

    kept: ClassVar[dict[str, Tensor]] = {}
    RETURN_TYPES = ()
    FUNCTION = "keep"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",), "name": ("STRING", {"default": ""})}}

    def keep(self, latent: Any, name: str) -> dict[str, Any]:
        self.kept[name] = latent["samples"].clone()
        return {}


@pytest.fixture(scope="module", autouse=True)
def nodes(host: Any) -> Iterator[None]:
    from support.hosts.process import host_nodes

    Wires.made = tiny_wires(host)
    mapping = host_nodes().NODE_CLASS_MAPPINGS
    mapping.update({"TestWires": Wires, "TestStack": Stack, "TestKeep": Keep})
    yield
    for name in ("TestWires", "TestStack", "TestKeep"):
        del mapping[name]


class Graph:
    """A graph in API form, built link by link."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.wires = [self.add("TestWires")[0], 0]

    def add(self, class_type: str, **inputs: Any) -> Link:
        self.nodes[name := str(len(self.nodes) + 1)] = {"class_type": class_type, "inputs": inputs}
        return [name, 0]

    def wire(self, number: int) -> Link:
        return ["1", number]

    def adapter(self, model: Link, weight: float) -> Link:
        inputs = {
            **defaults("IPAdapterAdvanced"),
            "model": model,
            "ipadapter": self.wire(1),
            "clip_vision": self.wire(2),
            "image": self.wire(3),
            "weight": weight,
        }
        return self.add("IPAdapterAdvanced", **inputs)

    def sample(self, model: Link, name: str) -> None:
        latent = self.add(
            "KSampler",
            model=model,
            positive=self.wire(4),
            negative=self.wire(5),
            latent_image=self.wire(6),
            seed=1,
            steps=2,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        self.add("TestKeep", latent=latent, name=name)

    def run(self, host: Any) -> dict[str, Tensor]:
        Keep.kept.clear()
        host.run(self.nodes)
        return dict(Keep.kept)


def branches(weight: float, bypassed: bool = False, tag: int = 0) -> Graph:
    """The checkpoint bare, with an adapter, with two, and with another pack on top."""
    graph = Graph()
    bare = graph.wire(0)
    one = bare if bypassed else graph.adapter(bare, weight)
    two = graph.adapter(one, 0.5)
    graph.sample(bare, "bare")
    graph.sample(one, "one")
    graph.sample(two, "two")
    graph.sample(graph.add("TestStack", model=one, tag=tag), "stacked")
    return graph


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_change_revert_bypass_and_run_again(host: Any) -> None:
    first = branches(0.8).run(host)
    assert len({float(latent.sum()) for latent in first.values()}) == 4  # every branch differs
    for weight in (0.1, 0.3, -0.5, 1.2, 3.0):
        changed = branches(weight).run(host)
        assert not torch.equal(changed["one"], first["one"])
        assert "bare" not in changed or torch.equal(changed["bare"], first["bare"])
    assert same(first, {**first, **branches(0.8).run(host)})
    bypassed = branches(0.8, bypassed=True).run(host)
    assert torch.equal(bypassed["one"], first["bare"])
    again = branches(0.8).run(host)
    assert same({name: first[name] for name in again}, again) and "one" in again


def test_a_pack_that_stacks_does_not_pile_up(host: Any) -> None:
    """Its node runs again on our cached MODEL; its terms must not add up there."""
    branches(0.4).run(host)  # so that nothing below is in the host's cache
    first = branches(0.8, tag=1).run(host)
    for tag in range(2, 6):
        assert torch.equal(branches(0.8, tag=tag).run(host)["stacked"], first["stacked"])
    changed = branches(0.6, tag=9).run(host)
    assert not torch.equal(changed["one"], first["one"])
    assert torch.equal(branches(0.8, tag=9).run(host)["one"], first["one"])
