"""Any inputs of the Apply nodes: a message that says what is wrong, or finite latents; soon, and
the MODEL that came in stays as it was.

IMAGE_PROMPT_FUZZ=50 draws fifty times as many cases.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hosts.scene import Scene
from support.models.unets import TINY_SD15
from support.references.bounds import Bound, cases
from torch import Tensor

SECONDS = 20.0  # of processor time per case, with sampling
MOST = 400 << 20  # bytes
WEIGHT_TYPES = ("linear", "ease in", "weak middle", "style transfer", "composition precise")
SCALINGS = ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")
ODD = (float("nan"), float("inf"), -0.0, 1e-30, 1e30)

side = st.one_of(st.integers(1, 48), st.sampled_from([224, 500]))
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8])
usual = st.integers(0, 11).map(bool)  # now and then a value that is to be refused
ranges = usual.flatmap(
    lambda good: (
        st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
        if good
        else st.tuples(*[st.sampled_from((0.0, 1.0, *ODD))] * 2)
    )
)
weights = usual.flatmap(lambda good: st.floats(-1, 5) if good else st.sampled_from(ODD))
layer_text = st.one_of(
    st.just(""),
    st.dictionaries(st.integers(0, 12), st.floats(-3, 9), max_size=5).map(
        lambda pairs: ", ".join(f"{layer}:{weight}" for layer, weight in pairs.items())
    ),
    st.text(alphabet="0123456789.:,- x\n", max_size=12),
)


@st.composite
def pictures(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 4)), draw(side), draw(side), draw(st.integers(1, 4)))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    dtype = draw(dtypes)
    return (values * 255).to(dtype) if dtype is torch.uint8 else values.to(dtype)


@st.composite
def masks(draw: st.DrawFn) -> Tensor | None:
    if draw(st.booleans()):
        return None
    first = st.integers(1, 5).map(lambda count: (count,))
    shape = (*(draw(first) if draw(usual) else (2, 3)), draw(side), draw(side))
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(draw(dtypes))


common = st.fixed_dictionaries(
    {
        "image": pictures(),
        "attn_mask": masks(),
        "image_mask": masks(),
        "image_negative": st.one_of(st.none(), pictures()),
        "weight": st.one_of(weights, st.lists(weights, max_size=5)),
        "weight_type": st.sampled_from(WEIGHT_TYPES),
        "combine_embeds": st.sampled_from(("concat", "add", "subtract", "average", "norm average")),
        "embeds_scaling": st.sampled_from(SCALINGS),
        "range": ranges,
    }
)
MORE = {
    "IPAdapterAdvanced": st.just({}),
    "IPAdapterBatch": st.fixed_dictionaries({"encode_batch_size": st.integers(0, 3)}),
    "IPAdapterMS": st.fixed_dictionaries(
        {"layer_weights": layer_text, "weight_faceidv2": st.just(1.0)}
    ),
    "IPAdapterTiled": st.fixed_dictionaries({"sharpening": st.floats(0, 1)}),
}


@pytest.fixture(scope="module", params=["standard", "Plus"])
def scene(host: Any, request: pytest.FixtureRequest) -> Scene:
    return Scene.build(host, TINY_SD15, plus=request.param == "Plus")


@pytest.fixture(scope="module")
def before(scene: Scene) -> Tensor:
    return scene.sample()


@pytest.mark.parametrize("node", MORE)
def test_any_inputs(scene: Scene, before: Tensor, node: str, record_property: Any) -> None:
    bound = Bound(SECONDS)

    @settings(
        max_examples=cases(12),
        derandomize=cases(1) == 1,  # without more cases, the same every time
        deadline=None,
        suppress_health_check=tuple(HealthCheck.__members__.values()),
        database=None,
    )
    @given(common, MORE[node], st.integers(1, 3))
    def run(given: dict[str, Any], more: dict[str, Any], batch: int) -> None:
        wires = {"model": scene.model, "ipadapter": scene.adapter, "clip_vision": scene.clip_vision}
        start, end = given.pop("range")
        given |= {"start_at": start, "end_at": end}
        inputs = {name: value for name, value in given.items() if value is not None}
        told = {name: getattr(value, "shape", value) for name, value in inputs.items()}
        with bound.case(f"{node} with {told}, {more}", MOST):
            (model,) = scene.host.call(node, **wires, **inputs, **more)[:1]
            latents = scene.sample(model, batch)
            assert latents.shape == (batch, 4, 16, 16) and torch.isfinite(latents).all()

    run()
    assert bound.refused < bound.cases
    assert torch.equal(scene.sample(), before)
    record_property("measured", str(bound))
