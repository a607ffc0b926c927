"""Gradient checkpointing: the same gradients from less memory, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.unets import TINY_SD15, TINY_SDXL, Geometry, build_pair
from torch import Tensor


def one_step(host: Any, geometry: Geometry, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of one step, and the bytes that were kept for them."""
    core = lambda name: host.module(f"ipadapter.{name}")  # noqa: E731
    frozen, trainable, data = (
        core("host.training.frozen"),
        core("training.trainable"),
        core("training.data"),
    )
    pair, g = build_pair(geometry), torch.Generator().manual_seed(3)
    size, width = pair.geometry.latent, geometry.context_dim
    latents, text = (
        torch.randn(2, 4, size, size, generator=g),
        torch.randn(2, 7, width, generator=g),
    )
    vectors = pair.extra.get("y")
    prompts = data.Prompts(text, text[:1] * 0, vectors, None if vectors is None else vectors[:1])
    features = torch.randn(2, 48, generator=g)
    samples = data.TrainingSet(latents, features, features[:1] * 0, prompts)
    plan = trainable.ProjectorPlan(core("adapters.families").Family.STANDARD, 48, width)
    settings = core("training.recipe").TrainSettings(batch_size=2)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shape = (2, *samples.latent_shape)
    with frozen.frozen_base(pair.model, frozen.Precision.FP32, shape, checkpointing) as unet:
        adapter = trainable.TrainableAdapter.create(plan, unet.text_weights(), g)
        schedule = frozen.schedule_of(pair.model)
        trainer = core("training.trainer").Trainer(
            adapter, samples, unet.predict, schedule, settings
        )
        weights = {p.untyped_storage().data_ptr() for p in pair.model.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = trainer.loss(trainer.draw())
        total = sum(size for where, size in kept.items() if where not in weights)
        loss.backward()
    assert not [m for m in pair.model.model.modules() if "forward" in vars(m)]
    return {name: p.grad.clone() for name, p in adapter.named_parameters()}, total


@pytest.mark.parametrize("geometry", [TINY_SD15, TINY_SDXL], ids=lambda g: g.name)
def test_gradients_are_the_same_and_less_is_kept(
    host: Any, geometry: Geometry, record_property: Any
) -> None:
    (plain, much), (again, little) = (one_step(host, geometry, flag) for flag in (False, True))
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    record_property(
        "measured", f"{geometry.name}: kept for gradients {little / much:.0%} of {much}"
    )
    assert little < 0.6 * much


def test_the_node_trains_to_the_same_adapter(host: Any) -> None:
    from support.hosts.training import Capture, capture_node, register, train_graph

    register(host)
    states = []
    for flag in (False, True):
        graph = train_graph(steps=2, warm_start=2, checkpointing=flag)
        host.run({**graph, "capture": capture_node(["2", 0])})
        states.append(Capture.kept["result"].adapter.training.tensors())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
