"""An adapter is the same adapter in every layout that trainings and diffusers leave it in."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.models import diffusers_layouts as layouts
from support.models.adapters import UNET_FAMILIES, Nested, flat, synthetic_adapter
from support.models.diffusers_layouts import BY_DIFFUSERS, BY_NAME, prefixed

from ipadapter.adapters.adapter import Adapter
from ipadapter.adapters.checkpoint import Checkpoint, checkpoint_from_dict, read_checkpoint
from ipadapter.adapters.families import Family
from ipadapter.files.tensors import TensorMap, flatten
from ipadapter.library.scan import contents_of, read_contents

BASES = {
    Family.FULL_FACE: ("SD1.5",),
    Family.FACEID_PLUS: ("SD1.5",),
    Family.PORTRAIT_UNNORM: ("SDXL",),
    Family.KOLORS_PLUS: ("Kolors",),
    Family.KOLORS_FACEID_PLUS: ("Kolors",),
}
CASES = [
    (family, base) for family in UNET_FAMILIES for base in BASES.get(family, ("SD1.5", "SDXL"))
]
# diffusers' class has four tokens here, Kolors' file six.
IN_DIFFUSERS = [(family, base) for family, base in CASES if family != Family.KOLORS_FACEID_PLUS]
WRAPPERS = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.")
Layout = Callable[[Nested, str], Mapping[str, Any]]


def adapter(family: Family, base: str) -> Nested:
    """All tensors differ, so that none can be taken for another."""
    return synthetic_adapter(family, base, tiny=True, device="cpu", depth=4, lora_rank=2)


def shuffled(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same in another order: a safetensors file is sorted by letters, a pickle is not."""
    keys = random.Random(0).sample(sorted(state), len(state))
    return {
        key: shuffled(state[key]) if isinstance(state[key], dict) else state[key] for key in keys
    }


def same(checkpoint: Checkpoint, nested: Nested) -> None:
    """Every tensor of the official layout, bit for bit, and no other."""
    for half, expected in nested.items():
        found: TensorMap = getattr(checkpoint, half)
        assert found.shapes() == {key: tuple(value.shape) for key, value in expected.items()}
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(("family", "base"), CASES)
@pytest.mark.parametrize("layout", BY_NAME)
def test_layers_called_by_their_place(family: Family, base: str, layout: str) -> None:
    nested = adapter(family, base)
    same(checkpoint_from_dict(shuffled(BY_NAME[layout](nested, base)), "x.bin"), nested)


@pytest.mark.parametrize(("family", "base"), IN_DIFFUSERS)
@pytest.mark.parametrize("layout", BY_DIFFUSERS)
def test_projectors_renamed_by_diffusers(family: Family, base: str, layout: str) -> None:
    nested = adapter(family, base)
    same(checkpoint_from_dict(shuffled(BY_DIFFUSERS[layout](nested, base)), "x.bin"), nested)


@pytest.mark.parametrize("layout", [*BY_NAME, *BY_DIFFUSERS])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_around_the_whole(wrapper: str, layout: str) -> None:
    nested = adapter(Family.FACEID_PLUS_V2, "SD1.5")
    state = flatten((BY_NAME | BY_DIFFUSERS)[layout](nested, "SD1.5"))
    same(checkpoint_from_dict(prefixed(wrapper, state), "x.bin"), nested)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module"])
def test_wrappers_around_parts(wrapper: str) -> None:
    nested = adapter(Family.PLUS, "SDXL")
    state = {
        key.replace("unet.", f"unet.{wrapper}.")
        .replace("image_proj_model.", f"image_proj_model.{wrapper}.")
        .replace("transformer_blocks.0.attn2", f"transformer_blocks.0.{wrapper}.attn2"): value
        for key, value in layouts.raw_training(nested, "SDXL").items()
    }
    same(checkpoint_from_dict(state, "x.bin"), nested)


@pytest.mark.parametrize("wrapper", ["module", "model", "state_dict"])
@pytest.mark.parametrize("layers", ["ip_adapter", "adapter_modules"])
def test_nested_official_layouts(wrapper: str, layers: str) -> None:
    nested = adapter(Family.FACEID, "SD1.5")
    halves = {"image_proj": nested["image_proj"], layers: nested["ip_adapter"]}
    same(checkpoint_from_dict({wrapper: halves, "step": 5}, "x.bin"), nested)
    same(checkpoint_from_dict({wrapper: flat(nested, layers)}, "x.bin"), nested)


@pytest.mark.parametrize("layout", [*BY_NAME, *BY_DIFFUSERS])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_files_of_every_kind(tmp_path: Path, layout: str, kind: str) -> None:
    nested = adapter(Family.FACEID_PLUS_V2, "SD1.5")
    state = (BY_NAME | BY_DIFFUSERS)[layout](nested, "SD1.5")
    path = tmp_path / "model.safetensors"
    if kind == "safetensors":
        save_file({key: value.clone() for key, value in flatten(state).items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    same(read_checkpoint(path), nested)
    official = contents_of(TensorMap.of(flat(nested)), path.name)
    assert read_contents(path) == official and official.spec


def test_ids_are_the_published_ones() -> None:
    """Positions of SDXL's layers by hand: down, up, mid; ten comes after two."""
    names = layouts.processor_names("SDXL")
    block = "{}.attentions.{}.transformer_blocks.{}.attn2.processor"
    assert len(names) == 140
    for number, place in {
        1: ("down_blocks.1", 0, 0),
        29: ("down_blocks.2", 1, 0),
        47: ("down_blocks.2", 1, 9),
        49: ("up_blocks.0", 0, 0),
        101: ("up_blocks.0", 2, 6),
        119: ("up_blocks.1", 2, 1),
        121: ("mid_block", 0, 0),
        139: ("mid_block", 0, 9),
    }.items():
        assert names[number] == block.format(*place)


@pytest.mark.parametrize("layout", [layouts.diffusers_state, layouts.raw_training])
def test_two_adapters_in_one_file_are_refused(layout: Layout) -> None:
    nested = adapter(Family.STANDARD, "SD1.5")
    other = {
        key.replace("layers.0.", "layers.1.").replace("_ip.0.", "_ip.1.")
        if layout is layouts.diffusers_state
        else f"ema.{key}": value
        for key, value in layout(nested, "SD1.5").items()
    }
    both = {**layout(nested, "SD1.5"), **other}
    with pytest.raises(ValueError, match=r"two\.bin holds several adapters: '.*' and '.*'"):
        checkpoint_from_dict(both, "two.bin")


def test_the_second_adapter_alone_is_read() -> None:
    nested = adapter(Family.PLUS, "SD1.5")
    same(checkpoint_from_dict(layouts.diffusers_state(nested, "SD1.5", 1), "x.bin"), nested)


def test_only_the_layers_of_a_training() -> None:
    nested = adapter(Family.STANDARD, "SD1.5")
    layers = prefixed("unet.", layouts.by_name(nested["ip_adapter"], "SD1.5"))
    with pytest.raises(ValueError, match=r"x\.bin is incomplete: it has no 'image_proj"):
        checkpoint_from_dict(layers, "x.bin")


def test_layers_of_unknown_names_are_not_claimed_to_be_known() -> None:
    nested = adapter(Family.STANDARD, "SD1.5")
    layers = {f"block_{key}": value for key, value in nested["ip_adapter"].items()}
    with pytest.raises(ValueError, match=r"x\.bin is an adapter whose layers are of an") as caught:
        Adapter.from_checkpoint(checkpoint_from_dict({**nested, "ip_adapter": layers}, "x.bin"))
    assert "it has 'block_1.to_" in str(caught.value)


def test_a_unet_with_a_text_projection_is_no_adapter() -> None:
    """Kolors' UNet has an encoder_hid_proj of its own, and every UNet has attention blocks."""
    contents = contents_of(TensorMap.of(layouts.other_weights("SDXL")), "unet.safetensors")
    assert contents.summary.startswith("a diffusion model (UNet)")


def test_reading_a_layout_loads_no_tensor() -> None:
    state = flatten(layouts.diffusers_state(adapter(Family.PLUS, "SD1.5"), "SD1.5"))
    read: list[str] = []
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    tensors = TensorMap(shapes, lambda key: read.append(key) or state[key])
    assert contents_of(tensors, "x").spec and not read
