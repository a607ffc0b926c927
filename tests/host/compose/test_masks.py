"""Masks: exact grids at every size, per latent, in place under area conds, and said so where they
cannot be placed."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from support.hosts.compose import (
    Pack,
    Prompt,
    Scene,
    conditioning,
    difference,
    sample,
    text,
    with_reference,
)
from support.hosts.neighbours import AREA, area_conds, mask_conds, node, tiled
from torch import Tensor

TOLERANCE = 1e-5


def sizes() -> list[tuple[int, int]]:
    """60 sizes in pixels, multiples of 8 from 256 to 1536, extreme aspects among them."""
    extremes = [(256, 1536), (1536, 256), (264, 1528), (1528, 264), (256, 1528), (1000, 264)]
    odd = [
        (8 * a, 8 * b) for a, b in ((33, 65), (67, 35), (33, 191), (129, 37), (63, 33), (45, 45))
    ]
    steps = torch.randint(32, 193, (60, 2), generator=torch.Generator().manual_seed(7)) * 8
    more = [(int(height), int(width)) for height, width in steps]
    return list(dict.fromkeys([*extremes, *odd, *more]))[:60]


def soft(seed: int = 0, masks: int = 1, height: int = 128, width: int = 128) -> Tensor:
    """Masks with a smooth slope and a hard edge."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None]
    parts = [((x + y * (index + 1)) / (index + 2)) * (x > 0.2) for index in range(masks)]
    return torch.stack(parts).clamp(0, 1).roll(seed, 0)


@pytest.fixture
def quick_unet(scene: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A UNet of its own, whose text attention and self-attention are left out to be quick."""
    import comfy.ldm.modules.attention as host_attention

    monkeypatch.setattr(host_attention, "optimized_attention", lambda query, *_, **__: query)
    return copy.deepcopy(scene.model.model.diffusion_model)


def test_the_grid_is_the_blocks_own_at_60_sizes(
    scene: Scene, pack: Pack, quick_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = pack.module("attention.injection")
    block_grid = patch.block_grid
    found: list[tuple[int, int]] = []
    true: list[tuple[int, int]] = []

    def recorded(length: int, extra: Any) -> tuple[int, int]:
        found.append(block_grid(length, extra))
        without = {key: value for key, value in extra.items() if key != "activations_shape"}
        assert block_grid(length, without) == found[-1]  # older hosts: from the latents' shape
        return found[-1]

    monkeypatch.setattr(patch, "block_grid", recorded)
    for module in quick_unet.modules():
        if type(module).__name__ == "SpatialTransformer":
            module.register_forward_pre_hook(lambda _, args: true.append(tuple(args[0].shape[-2:])))
    model = pack.apply(scene.model, Prompt(mask=soft()))
    options = {**model.model_options["transformer_options"], "sigmas": torch.ones(1)}
    for height, width in sizes():
        latents = torch.zeros(1, 4, height // 8, width // 8)
        with torch.inference_mode():
            quick_unet(latents, torch.ones(1), text(1), transformer_options=dict(options))
    assert len(set(sizes())) == 60 and len(found) == 60 * 16
    assert found == true


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 40), (11, 19)])
def test_all_ones_is_no_mask_and_all_zeros_no_adapter(
    scene: Scene, pack: Pack, height: int, width: int
) -> None:
    scene = scene.but(height=height, width=width)
    none = sample(scene, pack.apply(scene.model, Prompt()))
    ones = sample(scene, pack.apply(scene.model, Prompt(mask=torch.ones(1, 64, 64))))
    zeros = sample(scene, pack.apply(scene.model, Prompt(mask=torch.zeros(1, 64, 64))))
    assert difference(ones, none) < TOLERANCE
    assert torch.equal(zeros, sample(scene))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (11, 19)])
def test_complements_of_equal_adapters_make_one_whole(
    scene: Scene, pack: Pack, height: int, width: int
) -> None:
    scene, mask = scene.but(height=height, width=width), soft()
    parts = pack.apply(scene.model, Prompt(mask=mask), Prompt(mask=1 - mask))
    whole = pack.apply(scene.model, Prompt())
    assert difference(sample(scene, parts), sample(scene, whole)) < TOLERANCE


@pytest.mark.parametrize("masks", [1, 2, 3, 4])
def test_mask_i_belongs_to_latent_i(scene: Scene, pack: Pack, masks: int) -> None:
    scene, prompt = scene.but(batch=3), Prompt(items=3, mask=soft(masks=masks))
    got = sample(scene, pack.apply(scene.model, prompt))
    assert difference(got, with_reference(scene, prompt)) < TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        mask_conds,
        node("HyperTile", tile_size=32, swap_size=2, max_depth=0, scale_depth=False),
        node("TomePatchModel", ratio=0.3),
    ],
)
def test_beside_nodes_that_change_the_picture_inside(
    host: Any, scene: Scene, pack: Pack, change: Any
) -> None:
    scene, prompt = change(host, scene), Prompt(mask=soft())
    got = sample(scene, pack.apply(scene.model, prompt))
    assert difference(got, with_reference(scene, prompt)) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 2])
def test_an_area_cond_shows_its_part_of_the_mask(
    host: Any, scene: Scene, pack: Pack, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    scene = area_conds(host, scene).but(batch=batch)
    prompt = Prompt(mask=soft(masks=batch))
    with caplog.at_level(logging.WARNING, "ipadapter"):
        got = sample(scene, pack.apply(scene.model, prompt))
    expected = with_reference(scene, prompt, areas=[(None, AREA)])
    assert difference(got, expected) < TOLERANCE
    assert difference(with_reference(scene, prompt), expected) > 10 * TOLERANCE
    assert not caplog.records


def test_area_conds_of_one_size_keep_their_places(host: Any, scene: Scene, pack: Pack) -> None:
    """The host puts crops of the same size into one batch, wherever they lie."""
    scene = area_conds(host, area_conds(host, scene), (8, 12, 0, 0), seed=7).but(cfg=1.0)
    prompt, places = Prompt(mask=soft()), [(text(6), AREA), (text(7), (8, 12, 0, 0))]
    got = sample(scene, pack.apply(scene.model, prompt))
    assert difference(got, with_reference(scene, prompt, areas=places)) < TOLERANCE


def test_an_area_over_the_edge_is_cut_as_the_host_cuts_it(
    host: Any, scene: Scene, pack: Pack
) -> None:
    scene = area_conds(host, scene, (8, 12, 12, 8)).but(cfg=1.0)
    prompt, shown = Prompt(mask=soft()), (4, 8, 12, 8)
    got = sample(scene, pack.apply(scene.model, prompt))
    assert difference(got, with_reference(scene, prompt, areas=[(None, shown)])) < TOLERANCE


def test_tiles_that_name_no_place_are_reported_once(
    host: Any, scene: Scene, pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    scene = tiled(host, scene)
    with caplog.at_level(logging.WARNING, "ipadapter"):
        sample(scene, pack.apply(scene.model, Prompt(mask=soft()), Prompt(4, mask=soft(1))))
    (record,) = caplog.records
    assert "does not say where" in record.getMessage()


def test_a_sampler_that_enlarges_the_picture_is_no_tiling(
    host: Any, scene: Scene, pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    """SamplerLCMUpscale: the whole picture, larger from step to step."""
    import comfy.samplers

    (sampler,) = host.call(
        "SamplerLCMUpscale", scale_ratio=2.0, scale_steps=-1, upscale_method="nearest-exact"
    )
    model = pack.apply(scene.model, Prompt(mask=soft()))
    sizes: list[tuple[int, int]] = []

    def seen(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
        sizes.append(tuple(arguments["input"].shape[-2:]))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(seen)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(scene.positive, scene.negative)
    guider.set_cfg(4.0)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 3)
    noise = torch.zeros(1, 4, 16, 16)
    with caplog.at_level(logging.WARNING, "ipadapter"), torch.inference_mode():
        guider.sample(noise, noise, sampler, sigmas, seed=1)
    assert sizes[0] == (16, 16) and sizes[-1] == (32, 32)
    assert not caplog.records


def test_an_empty_mask_is_said_in_one_line(
    host: Any, scene: Scene, pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    empty = torch.zeros(1, 64, 64)  # what Load Image gives for a picture without transparency
    with caplog.at_level(logging.WARNING, "ipadapter"):
        model = pack.apply(scene.model, Prompt(mask=empty))
        assert torch.equal(sample(scene, model), sample(scene))
    (record,) = caplog.records
    assert "attn_mask is all black" in record.getMessage()


def test_no_mask_no_warning(
    host: Any, scene: Scene, pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    scene = tiled(host, scene)
    with caplog.at_level(logging.WARNING, "ipadapter"):
        sample(scene, pack.apply(scene.model, Prompt()))
    assert not caplog.records


def test_a_mask_of_any_size_and_shape_is_taken(scene: Scene, pack: Pack) -> None:
    mask = soft()
    plain = sample(scene, pack.apply(scene.model, Prompt(mask=mask)))
    for same in (mask[0], mask[:, None], mask[..., None]):
        assert torch.equal(sample(scene, pack.apply(scene.model, Prompt(mask=same))), plain)
    assert conditioning(text(1))
