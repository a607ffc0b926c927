"""Every weight type x base x scaling, through the node: the layers that act, their keys and values.

The expected side is computed here from the published formulas alone, with the layers numbered as
users number them (`t`, in the order in which the UNet runs), and none of the pack's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.hosts.wires import EMBED_DIM, random_pipeline
from support.models.unets import TINY_SD15, TINY_SDXL, Geometry, build_model, random_adapter
from torch import Tensor
from torch.nn import functional

WEIGHT = 0.7
TOKENS = 4
SD15, SDXL = TINY_SD15, TINY_SDXL
# (weight, what cond rows get, what uncond rows get); "" is nothing.
Acts = tuple[float, str, str]
Table = Mapping[int, Acts]


def sd15_layers() -> dict[tuple[str, int, int], tuple[int, int]]:
    """Block -> (position in the adapter, t)."""
    order = [("input", n) for n in (1, 2, 4, 5, 7, 8)]
    order += [("output", n) for n in range(3, 12)] + [("middle", 0)]
    run = [*range(6), *range(7, 16), 6]
    return {(name, n, 0): (i, t) for i, ((name, n), t) in enumerate(zip(order, run, strict=True))}


def sdxl_layers() -> dict[tuple[str, int, int], tuple[int, int]]:
    """Block -> (position in the adapter, t)."""
    blocks = [("input", 4, 2, 0), ("input", 5, 2, 1), ("input", 7, 10, 2), ("input", 8, 10, 3)]
    blocks += [("output", 0, 10, 5), ("output", 1, 10, 6), ("output", 2, 10, 7)]
    blocks += [("output", 3, 2, 8), ("output", 4, 2, 9), ("output", 5, 2, 10), ("middle", 0, 10, 4)]
    named = [((name, n, i), t) for name, n, depth, t in blocks for i in range(depth)]
    return {block: (position, t) for position, (block, t) in enumerate(named)}


LAYERS = {SD15.name: sd15_layers(), SDXL.name: sdxl_layers()}
COUNT = {SD15.name: 16, SDXL.name: 11}
MIDDLE = {SD15.name: 6, SDXL.name: 4}
STYLE = {SD15.name: [0, 1, 2, 3, *range(9, 16)], SDXL.name: [6]}
COMPOSITION = {SD15.name: {4: 0.25, 5: 1.0}, SDXL.name: {3: 1.0}}


def plain(weight: float) -> Acts:
    return weight, "image", "negative"


def swapped(weight: float) -> Acts:
    return weight, "", "image"


def ramp(shape: Callable[[float, int], float]) -> Callable[[str], Table]:
    def table(base: str) -> Table:
        count = COUNT[base]
        return {t: plain(WEIGHT * (0.05 + 0.95 * shape(t, count))) for t in range(count)}

    return table


def weak(*parts: str) -> Callable[[str], Table]:
    def table(base: str) -> Table:
        middle = MIDDLE[base]
        part = {t: "middle" if t == middle else ("input", "output")[t > middle] for t in range(99)}
        return {t: plain(WEIGHT * (0.2 if part[t] in parts else 1)) for t in range(COUNT[base])}

    return table


def of_style(base: str) -> Table:
    return {t: plain(WEIGHT) for t in STYLE[base]}


def of_composition(base: str) -> Table:
    return {t: plain(WEIGHT * share) for t, share in COMPOSITION[base].items()}


def style_precise(base: str) -> Table:
    pushed = {t: swapped(WEIGHT * share) for t, share in COMPOSITION[base].items()}
    return {**of_style(base), **pushed}


def composition_precise(base: str) -> Table:
    rest = {t: swapped(0.1 * WEIGHT) for t in range(COUNT[base])}
    return {**rest, **{t: swapped(WEIGHT) for t in STYLE[base]}, **of_composition(base)}


TYPES: Mapping[str, Callable[[str], Table]] = {
    "linear": lambda base: {t: plain(WEIGHT) for t in range(COUNT[base])},
    "ease in": ramp(lambda t, n: 1 - t / n),
    "ease out": ramp(lambda t, n: t / n),
    "ease in-out": ramp(lambda t, n: 1 - abs(t - n / 2) / (n / 2)),
    "reverse in-out": ramp(lambda t, n: abs(t - n / 2) / (n / 2)),
    "weak input": weak("input"),
    "weak output": weak("output"),
    "weak middle": weak("middle"),
    "strong middle": weak("input", "output"),
    "style transfer": of_style,
    "composition": of_composition,
    "strong style transfer": lambda base: {
        t: plain(WEIGHT) for t in range(COUNT[base]) if t not in COMPOSITION[base]
    },
    "style and composition": lambda base: {**of_style(base), **of_composition(base)},
    "style transfer precise": style_precise,
    "composition precise": composition_precise,
}
SCALINGS: Mapping[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "V only": lambda k, v, w: (k, v * w),
    "K+V": lambda k, v, w: (k * w, v * w),
    "K+V w/ C penalty": lambda k, v, w: (k * w * k.shape[-1] / 1280, v * w * k.shape[-1] / 1280),
    "K+mean(V) w/ C penalty": lambda k, v, w: (
        k * w * k.shape[-1] / 1280,
        v - v.mean(1, keepdim=True) + v.mean(1, keepdim=True) * w * k.shape[-1] / 1280,
    ),
}


class Scene:
    """A MODEL, an adapter as its tensors, and the tokens of a picture and of nothing."""

    def __init__(self, host: Any, geometry: Geometry) -> None:
        self.geometry = geometry
        self.model = build_model(geometry)
        self.pipeline = random_pipeline(host, geometry)
        self.state = random_adapter(geometry, embed_dim=EMBED_DIM)
        self.image = torch.rand(1, 40, 40, 3, generator=torch.Generator().manual_seed(2))
        given = {"ipadapter": self.pipeline, "image": self.image, "weight": 1.0}
        seen = host.call("IPAdapterEncoder", **given)[0].features.float()
        self.tokens = {
            "image": self.projected(seen),
            "negative": self.projected(torch.zeros_like(seen)),
            "": torch.zeros(1, TOKENS, geometry.context_dim),
        }

    def projected(self, features: Tensor) -> Tensor:
        weights = self.state["image_proj"]
        flat = features @ weights["proj.weight"].T + weights["proj.bias"]
        shape = (len(features), TOKENS, self.geometry.context_dim)
        dim = (self.geometry.context_dim,)
        return functional.layer_norm(
            flat.view(shape), dim, weights["norm.weight"], weights["norm.bias"]
        )

    def expected(self, position: int, acts: Acts, scaling: str) -> list[tuple[Tensor, Tensor]]:
        """Keys and values for cond and uncond rows."""
        weight, *sources = acts
        layers = self.state["ip_adapter"]
        to_k, to_v = (layers[f"{2 * position + 1}.to_{part}_ip.weight"] for part in ("k", "v"))
        pairs = []
        for source in sources:
            tokens = self.tokens[source]
            pairs.append(SCALINGS[scaling](tokens @ to_k.T, tokens @ to_v.T, weight))
        return pairs


@pytest.fixture(scope="module", params=[SD15, SDXL], ids=["SD1.5", "SDXL"])
def scene(host: Any, request: pytest.FixtureRequest) -> Scene:
    with torch.inference_mode():
        return Scene(host, request.param)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("weight_type", TYPES)
def test_layers_keys_and_values(host: Any, scene: Scene, weight_type: str, scaling: str) -> None:
    (patched,) = host.call(
        "IPAdapterAdvanced",
        model=scene.model,
        ipadapter=scene.pipeline,
        image=scene.image,
        weight=WEIGHT,
        weight_type=weight_type,
        embeds_scaling=scaling,
    )
    slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    patches = {slot: patch for slot, patch in slots.items() if len(slot) == 3}
    blocks, acting = LAYERS[scene.geometry.name], TYPES[weight_type](scene.geometry.name)
    assert patches.keys() == {block for block, (_, t) in blocks.items() if t in acting}
    for block, patch in patches.items():
        position, t = blocks[block]
        (injection,) = patch.injections
        layer = injection.layer
        for pair, wanted in zip(
            (layer.cond, layer.uncond), scene.expected(position, acting[t], scaling), strict=True
        ):
            compare(pair.key, wanted[0])
            compare(pair.value, wanted[1])


def compare(found: Tensor, wanted: Tensor) -> None:
    """Equal to a millionth; a layer that gives nothing may give it as one token or as four."""
    if not wanted.any():
        assert not found.any()
        return
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_all_types_and_scalings_are_covered(host: Any) -> None:
    inputs = host.node("IPAdapterAdvanced").INPUT_TYPES()["required"]
    assert inputs["weight_type"][1]["options"] == list(TYPES)
    assert inputs["embeds_scaling"][1]["options"] == list(SCALINGS)
