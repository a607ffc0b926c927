"""Adapters for transformers are told by keys and shapes, also from those whose keys they share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adapters import UNET_FAMILIES, flat, shapes_of, synthetic_adapter
from support.models.transformer_adapters import SHAPES_ONLY, published, xlabs
from support.models.transformers import FLUX_DEV

from ipadapter.adapters.checkpoint import checkpoint_from_dict
from ipadapter.adapters.families import Family
from ipadapter.adapters.spec import AdapterSpec, identify
from ipadapter.adapters.wiring import Wiring
from ipadapter.files.kinds import Kind
from ipadapter.files.tensors import TensorMap
from ipadapter.library.scan import contents_of

FILES = published()
FAMILIES = [family for family in Family if family not in UNET_FAMILIES]


def read(state: dict[str, Any], name: str = "model (1).safetensors") -> AdapterSpec:
    checkpoint = checkpoint_from_dict(state, name)
    return identify(checkpoint.image_proj.shapes(), checkpoint.ip_adapter.shapes(), name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_files(family: Family) -> None:
    spec = read(FILES[family.value])
    assert spec.family is family
    expected = {
        Family.FLUX_XLABS: ("Flux.1", 16, 768, 4096, (3072,) * 19),
        Family.FLUX_INSTANTX: ("Flux.1", 128, 1152, 4096, (3072,) * 57),
        Family.SD3_INSTANTX: ("SD3.5-Large", 64, 1152, 2432, (2432,) * 38),
        Family.TRANSFORMER: ("Cosmos-Predict2 2B", 4, 1024, 1024, (2048,) * 28),
        Family.TRANSFORMER_PLUS: ("Cosmos-Predict2 2B", 16, 1280, 1024, (2048,) * 28),
    }[family]
    base, *dims = expected
    assert spec.base_name == base
    assert [spec.num_tokens, spec.embed_dim, spec.token_dim, spec.layer_widths] == dims


def test_both_versions_of_xlabs() -> None:
    assert read(xlabs(FLUX_DEV, 768, 4, SHAPES_ONLY)).num_tokens == 4
    assert read(xlabs(FLUX_DEV, 768, 16, SHAPES_ONLY)).num_tokens == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_listed_as_adapters(family: Family) -> None:
    shapes = shapes_of(FILES[family.value])
    found = contents_of(TensorMap(shapes, lambda key: torch.empty(shapes[key])), "x")
    assert found.kind is Kind.ADAPTER and found.spec and found.spec.family is family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_wrappers_and_nesting_change_nothing(family: Family, wrapper: str) -> None:
    state = FILES[family.value]
    assert read({wrapper + key: value for key, value in state.items()}).family is family


# A transformer's file and the UNet's whose projector has the same keys.
TWINS = {
    Family.FLUX_XLABS: Family.STANDARD,
    Family.FLUX_INSTANTX: Family.FACEID,
    Family.SD3_INSTANTX: Family.PLUS,
    Family.TRANSFORMER: Family.STANDARD,
    Family.TRANSFORMER_PLUS: Family.PLUS,
}


@pytest.mark.parametrize("family", TWINS)
def test_shared_projector_keys_are_told_apart_by_the_layers(family: Family) -> None:
    twin = TWINS[family]
    assert twin.row.telling_key == family.row.telling_key
    assert read(flat(synthetic_adapter(twin, "SDXL", lora=True))).family is not family
    assert read(FILES[family.value]).family is family


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projector_holds_every_tensor_of_the_file(family: Family) -> None:
    checkpoint = checkpoint_from_dict(FILES[family.value], "x")
    spec = read(FILES[family.value])
    with torch.device("meta"):
        module = family.row.projector(checkpoint.image_proj.shapes())
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == (
        checkpoint.image_proj.shapes()
    )
    assert spec.projected_dim == spec.token_dim


LAYER = {
    "XLabs": "double_blocks.7.processor.ip_adapter_double_stream_{}_proj",
    "InstantX": "ip_adapter.7.to_{}_ip",
    "InstantX timed": "ip_adapter.7.to_{}_ip",
    "standard for transformers": "ip_adapter.7.to_{}_ip",
    "Plus for transformers": "ip_adapter.7.to_{}_ip",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_layer_is_named(family: Family) -> None:
    begin = LAYER[family.value].rpartition(".")[0] + "."
    state = {key: value for key, value in FILES[family.value].items() if not key.startswith(begin)}
    with pytest.raises(ValueError, match=r"flux\.bin: layers \[7\] are missing") as caught:
        read(state, "flux.bin")
    assert "for 0, 1, 2 ... " in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_tensor_is_named(family: Family) -> None:
    gone = LAYER[family.value].format("v") + ".weight"
    state = {key: value for key, value in FILES[family.value].items() if key != gone}
    with pytest.raises(ValueError, match=r"flux\.bin: '7\.to_v_ip\.weight' is missing"):
        read(state, "flux.bin")


def test_layers_with_something_more_are_not_guessed_at() -> None:
    extra = {"ip_adapter.3.gate": torch.empty(1, device="meta")}
    with pytest.raises(ValueError, match=r"whose layers are of an unknown kind") as caught:
        read({**FILES["InstantX"], **extra}, "new.bin")
    assert "new.bin" in str(caught.value) and "XLabs" in str(caught.value)


def test_every_wiring_of_a_transformer_is_known_by_what_it_holds() -> None:
    for wiring in Wiring:
        found = Wiring.of_transformer(wiring.value.holds)
        assert found is (Wiring.INSTANTX if wiring is Wiring.UNET else wiring)
