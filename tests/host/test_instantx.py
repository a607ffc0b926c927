"""InstantX's adapter on Flux, from its file and SigLIP's to the network's output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.hosts.applied import pack_model
from support.models.encoders import SMALL, random_weights, siglip, with_weights
from support.models.transformer_adapters import instantx
from support.models.transformers import TINY_FLUX, WIDE_FLUX, Geometry, Pair, build_pair
from support.references.interface import defaults
from support.references.naive_flux import naive_output
from support.references.transformers import Case, model_output
from torch import Tensor

EMBED = 64  # of the tiny SigLIP
TOLERANCE = 1e-5


@pytest.fixture
def core(host: Any) -> Any:
    return lambda name: host.module(f"ipadapter.{name}")


@pytest.fixture(scope="module")
def pair(host: Any) -> Pair:
    return build_pair(TINY_FLUX)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def case_of(geometry: Geometry, tokens: int = 8, weight: float = 0.8) -> Case:
    state = instantx(geometry, EMBED, tokens, seed=6)
    return Case([state], [weight], [seeded(20, 1, EMBED)], [0.1 * seeded(40, 1, EMBED)])


# From the files ------------------------------------------------------------------------------


def as_published(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Nested and in bf16, as the pickle has it."""
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        half, _, name = key.partition(".")
        nested[half][name] = value.bfloat16()
    return nested


@pytest.fixture(scope="module")
def files(host: Any) -> tuple[dict[str, Tensor], Any, dict[str, Tensor]]:
    """Both files in the models' folders: the adapter's numbers, SigLIP's network and weights."""
    state = instantx(TINY_FLUX, EMBED, 8, seed=6)
    torch.save(as_published(state), host.models("ipadapter") / "ip-adapter.bin")
    network = siglip({key: value for key, value in SMALL.items() if key != "hidden_act"})
    weights = random_weights(network)
    save_file(weights, host.models("clip_vision") / "sigclip.safetensors")
    return {key: value.bfloat16().float() for key, value in state.items()}, network, weights


def applied(host: Any, pair: Pair, encoder: Any, image: Tensor, **given: Any) -> Any:
    """The MODEL that the nodes make of the files."""
    (adapter,) = host.call("IPAdapterModelLoader", ipadapter_file="ip-adapter.bin")
    wires = {"model": pair.model, "ipadapter": adapter, "image": image, "clip_vision": encoder}
    inputs = {**defaults("IPAdapterAdvanced"), **wires, **given}
    return host.call("IPAdapterAdvanced", **inputs)[0]


def test_two_files_and_three_nodes_equal_the_published_maths(
    host: Any, pair: Pair, files: Any, record_property: Any
) -> None:
    """The picture by transformers' own preparation and pooler, the rest written plainly."""
    from skimage import data
    from transformers import SiglipImageProcessorPil

    state, network, weights = files
    prepare = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pixels = prepare(data.astronaut(), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        pooled = with_weights(network, weights)(pixels).pooler_output.clone()
    name = "sigclip.safetensors"
    (encoder,) = host.call("IPAdapterImageEncoderLoader", clip_vision_name=name)
    picture = torch.from_numpy(data.astronaut())[None] / 255
    model = applied(host, pair, encoder, picture, weight=0.8)
    ours, plain = model_output(pair, model), model_output(pair, pair.model)
    # The negative of no negative picture is the picture itself.
    expected = naive_output(pair, Case([state], [0.8], [pooled], [pooled]))
    error = difference(ours, expected)
    assert difference(ours[0], plain[0]) > 0.05
    record_property("measured", f"{'InstantX by its nodes from the plain maths':<70} {error:.1e}")
    assert difference(ours[1], plain[1]) > 0.05 and error < TOLERANCE


def test_the_stock_encoder_is_refused_by_name(host: Any, pair: Pair, files: Any) -> None:
    _, network, weights = files
    config = {**network.config.to_dict(), "model_type": "siglip_vision_model"}
    stock = host.module("ipadapter.host.encoders")._build(config, weights)
    with pytest.raises(ValueError, match="IPAdapter Image Encoder Loader instead"):
        applied(host, pair, stock, torch.rand(1, 40, 40, 3))


def test_clips_encoder_is_refused(host: Any, pair: Pair, files: Any) -> None:
    from support.models.vision import tiny_clip_vision

    with pytest.raises(ValueError, match=r"ip-adapter\.bin needs .* of width 64"):
        applied(host, pair, tiny_clip_vision(projected=48), torch.rand(1, 40, 40, 3))


# The maths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", ["key", "value", "both"])
def test_a_missing_norm_fails_the_judge(
    core: Any, pair: Pair, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both, keys and values, are normalised head by head."""
    kind = core("attention.folding").KeyValue
    right = kind.normalised

    def wrong(given: Any, heads: int, eps: float = 1e-5) -> Any:
        normal = right(given, heads, eps)
        key = normal.key if left_out == "value" else given.key
        return kind(key, normal.value if left_out == "key" else given.value)

    case = case_of(TINY_FLUX)
    expected = naive_output(pair, case)
    assert difference(model_output(pair, pack_model(pair, case, core)), expected) < TOLERANCE
    monkeypatch.setattr(kind, "normalised", wrong)
    found = difference(model_output(pair, pack_model(pair, case, core)), expected)
    assert found > 1000 * TOLERANCE


def test_text_rows_of_single_blocks_take_part(
    core: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code gives them their share; to leave them out is seen."""
    flux, case = core("host.bases.flux"), case_of(TINY_FLUX)
    expected = naive_output(pair, case)
    monkeypatch.setattr(flux, "SINGLE", "no block is called so")
    found = difference(model_output(pair, pack_model(pair, case, core)), expected)
    assert found > 100 * TOLERANCE


@pytest.mark.slow
def test_one_block_of_each_kind_at_real_width(core: Any, record_property: Any) -> None:
    """128 tokens of 4096, heads of 128: four gigabytes."""
    wide = build_pair(WIDE_FLUX)
    case = case_of(WIDE_FLUX, tokens=128, weight=1.0)
    ours = model_output(wide, pack_model(wide, case, core))
    error = difference(ours, naive_output(wide, case))
    record_property("measured", f"{'InstantX, a block of each kind, real width':<70} {error:.1e}")
    assert difference(ours, model_output(wide, wide.model)) > 0.01 and error < 2e-4
