"""What a patched MODEL holds: keys and values, and nothing of the adapter they came from."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.hosts.applied import applied
from support.hosts.scene import picture
from support.models.unets import FULL_SDXL, build_empty_model, random_adapter
from support.models.vision import tiny_clip_vision
from support.references.interface import defaults

LIMIT = 12e6  # bytes, in half precision
TOKENS = 16


@pytest.fixture(scope="module")
def model(host: Any) -> Any:
    """SDXL at full size; its weights are on the meta device."""
    return build_empty_model(FULL_SDXL)


def plus_adapter(host: Any) -> Any:
    """A Plus adapter for SDXL whose 682 MB of layer weights are made when they are read."""
    stored, checkpoints = (
        host.module(f"ipadapter.{name}") for name in ("files.tensors", "adapters.checkpoint")
    )
    small = random_adapter(replace(FULL_SDXL, widths=()), plus=True, embed_dim=64)
    shapes = {
        f"{2 * number + 1}.{part}.weight": (width, FULL_SDXL.context_dim)
        for number, width in enumerate(FULL_SDXL.widths)
        for part in ("to_k_ip", "to_v_ip")
    }
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(1280, FULL_SDXL.context_dim, generator=g).half() / 45
    checkpoint = checkpoints.Checkpoint(
        stored.TensorMap.of(small["image_proj"]),
        stored.TensorMap(shapes, lambda key: weights[: shapes[key][0]]),
        "plus_sdxl.safetensors",
    )
    return host.module("ipadapter.adapters.adapter").Adapter.from_checkpoint(checkpoint)


def apply(host: Any, model: Any, adapter: Any) -> Any:
    inputs = {
        **defaults("IPAdapterAdvanced"),
        "model": model,
        "ipadapter": adapter,
        "image": picture(1),
        "weight": 0.8,
        "clip_vision": tiny_clip_vision(hidden=64),
    }
    return host.call("IPAdapterAdvanced", **inputs)[0]


@pytest.fixture(scope="module")
def patched(host: Any, model: Any) -> Any:
    return apply(host, model, plus_adapter(host))


def slots(model: Any) -> dict[Any, Any]:
    return model.model_options["transformer_options"]["patches_replace"]["attn2"]


def reachable(roots: list[Any]) -> Iterator[Any]:
    """Every object that the roots keep alive. Of code, what it closes over and not its module."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (type, types.ModuleType)):
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, types.FunctionType):
            waiting += [cell.cell_contents for cell in item.__closure__ or ()]
            waiting += [*(item.__defaults__ or ()), item.__dict__]
        else:
            waiting += gc.get_referents(item)


def held_tensors(model: Any) -> dict[int, int]:
    """Storage -> bytes, of everything that the adapter put into a MODEL."""
    roots = [model.model_options, model.wrappers, model.callbacks]
    storages = [
        item.untyped_storage() for item in reachable(roots) if isinstance(item, torch.Tensor)
    ]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def test_sdxl_with_a_plus_adapter_stays_small(patched: Any, record_property: Any) -> None:
    held = sum(held_tensors(patched).values())
    record_property("measured", f"bytes held by SDXL with a Plus adapter: {held / 1e6:.2f} MB")
    widths = sum(FULL_SDXL.widths)
    assert held == 2 * 2 * 2 * TOKENS * widths  # K and V, cond and uncond, two bytes each
    assert held <= LIMIT
    assert held == sum(patch.nbytes() for patch in set(slots(patched).values()))
    assert len(slots(patched)) >= 70


def test_nothing_of_the_adapter_is_reachable(patched: Any, host: Any) -> None:
    core = host.module
    foreign = (
        torch.nn.Module,
        core("ipadapter.adapters.adapter").Adapter,
        core("ipadapter.adapters.checkpoint").Checkpoint,
        core("ipadapter.files.tensors").TensorMap,
        core("ipadapter.adapters.prompt").ImagePrompt,
    )
    held = list(reachable([*slots(patched).values(), patched.wrappers, patched.callbacks]))
    assert not [type(item) for item in held if isinstance(item, foreign)]
    assert any(isinstance(item, torch.Tensor) for item in held)


def test_the_adapter_can_go_while_the_model_stays(host: Any, model: Any) -> None:
    adapter = plus_adapter(host)
    patched = apply(host, model, adapter)
    watched = [
        weakref.ref(adapter),
        weakref.ref(adapter.checkpoint),
        weakref.ref(adapter.projector),
    ]
    del adapter
    gc.collect()
    assert [ref() for ref in watched] == [None, None, None]
    assert slots(patched)


def test_a_clone_copies_no_tensor(patched: Any) -> None:
    assert held_tensors(patched.clone()) == held_tensors(patched)


def test_a_second_adapter_costs_as_much_again(host: Any, patched: Any) -> None:
    once = held_tensors(patched)
    twice = held_tensors(apply(host, patched, plus_adapter(host)))
    assert once.keys() <= twice.keys()
    assert sum(twice.values()) == 2 * sum(once.values())


def test_a_type_of_few_layers_holds_only_those(host: Any, model: Any) -> None:
    adapter = plus_adapter(host)
    tokens = torch.randn(1, TOKENS, FULL_SDXL.context_dim)
    prompt = host.module("ipadapter.adapters.prompt").ImagePrompt(tokens, tokens)
    weights = host.module("ipadapter.attention.weight_types")
    core = lambda name: host.module(f"ipadapter.{name}")  # noqa: E731
    style = weights.Weighting(kind=weights.WeightType.STYLE)
    patched = applied(core, model, adapter, prompt, style)
    assert {key[:2] for key in slots(patched)} == {("output", 1)}
    # Half of a prompt's usual: what cond and uncond rows attend to is the same here, and held once.
    assert sum(held_tensors(patched).values()) == 4 * TOKENS * 10 * 1280
