"""The warm start on real bases: one step against `diffusers`, and what the node makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.hosts.training import (
    ONE_LEVEL,
    Capture,
    capture_node,
    node_inputs,
    register,
    train_graph,
)
from support.models.unets import TINY_SD15, TINY_SDXL, Geometry, Pair, build_pair
from torch import Tensor
from torch.nn import functional

EMBED, STUDY = 48, 60


def data_of(host: Any, pair: Pair, count: int = 2) -> Any:
    data, g = host.module("ipadapter.training.data"), torch.Generator().manual_seed(8)
    states = torch.randn(count + 1, 77, pair.geometry.context_dim, generator=g)
    vectors = pair.extra.get("y")
    nothing = None if vectors is None else vectors[:1]
    prompts = data.Prompts(states[:count], states[count:], vectors, nothing)
    size = pair.geometry.latent
    latents = torch.randn(count, 4, size, size, generator=g)
    features = torch.randn(count, EMBED, generator=g)
    return data.TrainingSet(latents, features, torch.zeros(1, EMBED), prompts)


def plain_gradients(pair: Pair, adapter: Any, data: Any, draw: Any) -> tuple[float, Mapping]:
    """The warm start's formula on the pair's `diffusers` UNet; loss and gradients by name."""
    from diffusers import DDPMScheduler

    seen: list[tuple[Any, Tensor, Tensor]] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((module, args[0], kwargs["encoder_hidden_states"]))

    attentions = {
        name: module for name, module in pair.reference.named_modules() if name.endswith("attn2")
    }
    hooks = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in attentions.values()]
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    batch = data.batch(draw.samples, draw.drop_image, draw.drop_text)
    noisy = scheduler.add_noise(batch.latents, draw.noise, draw.timesteps)
    rows = torch.where(draw.drop_text, 0, draw.samples)
    extra = pair.extra.get("added_cond_kwargs", {})
    added = {"added_cond_kwargs": {key: value[rows] for key, value in extra.items()}}
    with torch.no_grad():
        pair.reference(noisy, draw.timesteps, batch.text, **(added if extra else {}))
    for hook in hooks:
        hook.remove()
    order = {id(module): name for name, module in attentions.items()}
    images = dict(zip(adapter_order(list(attentions)), adapter(batch.features), strict=True))
    errors = []
    for module, hidden, text in seen:
        image = images[order[id(module)]]
        with torch.no_grad():
            query = module.to_q(hidden)
            nothing = data.prompts.empty.expand(len(text), -1, -1)
            wanted = attend(module, query, module.to_k(text), module.to_v(text))
            wanted -= attend(module, query, module.to_k(nothing), module.to_v(nothing))
        error = (attend(module, query, image.key, image.value) - wanted).square().mean()
        errors.append(error / wanted.square().mean())
    loss = torch.stack(errors).mean()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in adapter.named_parameters()}


def adapter_order(names: list[str]) -> list[str]:
    """Down, up, middle: an adapter's."""
    return sorted(names, key=lambda name: ("down", "up", "mid").index(name.split("_")[0]))


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (module.heads, -1)).transpose(1, 2) for t in (query, key, value))
    return (
        functional.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).matmul(v).transpose(1, 2).flatten(2)
    )


@pytest.mark.parametrize("geometry", [ONE_LEVEL, TINY_SD15, TINY_SDXL], ids=lambda g: g.name)
def test_one_step_equals_the_plain_formula_on_diffusers(host: Any, geometry: Geometry) -> None:
    core = lambda name: host.module(f"ipadapter.{name}")  # noqa: E731
    pair, g = build_pair(geometry), torch.Generator().manual_seed(9)
    data, frozen, study = (
        data_of(host, pair),
        core("host.training.frozen"),
        core("training.study"),
    )
    trainable = core("training.trainable")
    family = core("adapters.families").Family.STANDARD
    plan = trainable.ProjectorPlan(family, EMBED, geometry.context_dim)
    settings = core("training.recipe").TrainSettings(batch_size=2, seed=4, warm_start=10)
    with frozen.frozen_base(pair.model, frozen.Precision.FP32, (2, *data.latent_shape)) as unet:
        adapter = trainable.TrainableAdapter.create(plan, unet.text_weights(), g)
        schedule = frozen.schedule_of(pair.model)
        stage = study.Study(adapter, data, unet.observe, schedule, settings)
        draw = study.Study(adapter, data, unet.observe, schedule, settings).draw()
        found = stage.gradients(draw)
        ours = {name: p.grad.clone() for name, p in adapter.named_parameters()}
        adapter.zero_grad()
    loss, plain = plain_gradients(pair, adapter, data, draw)
    assert sum(found) / len(found) == pytest.approx(loss, rel=1e-4)
    for name, theirs in plain.items():
        assert (ours[name] - theirs).norm() < 1e-4 * theirs.norm(), name


@pytest.fixture(scope="module")
def studied(host: Any) -> tuple[Any, Any]:
    """Training states with and without a warm start, after the same steps of the recipe."""
    register(host)
    states = []
    for warm_start in (STUDY, 0):
        graph = train_graph(steps=1, warm_start=warm_start)
        host.run({**graph, "capture": capture_node(["2", 0])})
        states.append(Capture.kept["result"].adapter.training)
    return states[0], states[1]


def test_the_node_has_a_warm_start(studied: tuple[Any, Any]) -> None:
    warm, plain = studied
    assert len(warm.studied) == STUDY and not len(plain.studied)
    assert float(warm.studied[-10:].mean()) < 0.5 * float(warm.studied[:3].mean())
    assert warm.steps == plain.steps == 1


def test_interrupted_in_the_warm_start_it_goes_on_bit_identically(
    host: Any, studied: tuple[Any, Any]
) -> None:
    import comfy.model_management
    import comfy.utils

    seen: list[int] = []

    def stop(value: int, _total: int, _preview: Any, node_id: Any = None) -> None:
        if value >= STUDY // 2 and not seen:
            seen.append(value)
            comfy.model_management.interrupt_current_processing()

    graph = train_graph(steps=1, warm_start=STUDY, captions="another run")
    graph["3"] = train_graph(steps=1, warm_start=STUDY, resume_from=["2", 0])["2"]
    graph["4"] = capture_node(["2", 0], "stopped")
    graph["5"] = capture_node(["3", 0], "resumed")
    comfy.utils.set_progress_bar_global_hook(stop)
    try:
        host.run(graph)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    stopped, resumed = (Capture.kept[name].adapter.training for name in ("stopped", "resumed"))
    assert len(stopped.studied) == seen[0] < STUDY and not stopped.steps
    ours, whole = resumed.tensors(), studied[0].tensors()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_the_base_is_not_changed(host: Any) -> None:
    model = build_pair(ONE_LEVEL).model
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    given = node_inputs(model, steps=1, warm_start=3)
    pipeline, _curve = host.call("IPAdapterTrain", **given)
    assert len(pipeline.adapter.training.studied) == 3
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in model.model.diffusion_model.parameters())
