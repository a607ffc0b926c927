"""Image prompts on transformers beside other nodes, before and after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.hosts.compose import SKIPPED
from support.hosts.neighbours import windowed_model
from support.hosts.scene import Scene, picture
from support.models.transformer_adapters import instantx, sd3, xlabs
from support.models.transformers import TINY_FLUX, TINY_SD3, Geometry, flux_controlnet, randomise
from tools.random_transformers import FLUX_SIZE, SD3_SIZE, sd3_network
from tools.random_transformers import flux as flux_network
from torch import Tensor

ROUNDING = 1e-5
VISIBLE = 1e-3
SCENES = {
    "XLabs": (TINY_FLUX, xlabs),
    "InstantX": (TINY_FLUX, instantx),
    "SD3.5": (TINY_SD3, sd3),
}


@pytest.fixture(scope="module", params=SCENES)
def scene(host: Any, request: pytest.FixtureRequest) -> Scene:
    geometry, file = SCENES[request.param]
    return Scene.of_transformer(host, geometry, file(geometry))


@pytest.fixture(scope="module")
def flux(host: Any) -> Scene:
    return Scene.of_transformer(host, TINY_FLUX, xlabs(TINY_FLUX))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def block_wrapper(scene: Scene, model: Any) -> Any:
    """A pack that puts itself around a block and scales what it gives."""
    clone = model.clone()
    before = clone.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    held = before.get(("double_block", 1))

    def wrap(args: Any, extra: Any) -> Any:
        out = extra["original_block"](args) if held is None else held(args, extra)
        return {**out, "img": out["img"] * 1.1}

    clone.set_model_patch_replace(wrap, "dit", "double_block", 1)
    return clone


def override(scene: Scene, model: Any) -> Any:
    """A pack that computes the attention itself."""
    clone = model.clone()

    def attend(function: Any, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 0.9 * function(query, *args, **kwargs)

    options = clone.model_options["transformer_options"]
    options["optimized_attention_override"] = attend
    return clone


def core_node(name: str, **inputs: Any) -> Callable[[Scene, Any], Any]:
    return lambda scene, model: scene.host.call(name, model=model, **inputs)[0]


CHANGES: dict[str, Callable[[Scene, Any], Any]] = {
    "a block wrapper": block_wrapper,
    "an attention override": override,
    "skipped layers": core_node("SkipLayerGuidanceDiT", **SKIPPED),
    "a shifted schedule": core_node("ModelSamplingSD3", shift=5.0),
    "rescaled guidance": core_node("RescaleCFG", multiplier=0.7),
}


@pytest.mark.parametrize("name", CHANGES)
def test_before_and_after_are_the_same(scene: Scene, name: str) -> None:
    change = CHANGES[name]
    before = scene.sample(scene.apply(change(scene, scene.model)))
    after = scene.sample(change(scene, scene.apply()))
    assert difference(before, after) < ROUNDING
    assert difference(after, scene.sample(scene.apply())) > VISIBLE
    assert difference(after, scene.sample(change(scene, scene.model))) > VISIBLE


def test_easycache_of_no_reuse_changes_nothing(scene: Scene) -> None:
    cache = core_node(
        "EasyCache", reuse_threshold=0.0, start_percent=0.15, end_percent=0.95, verbose=False
    )
    assert torch.equal(scene.sample(cache(scene, scene.apply())), scene.sample(scene.apply()))


def test_on_one_conditioning(scene: Scene) -> None:
    """A hook on both prompts is the adapter on the MODEL; on the positive alone it is not."""
    positive, negative = (scene.hooked(cond) for cond in (scene.positive, scene.negative))
    both = scene.sample(positive=positive, negative=negative)
    one, on_model = scene.sample(positive=positive), scene.sample(scene.apply())
    assert difference(both, on_model) < ROUNDING
    assert difference(one, on_model) > VISIBLE
    assert difference(one, scene.sample()) > VISIBLE


def test_several_pictures_joined_or_averaged(scene: Scene) -> None:
    many = scene.sample(scene.apply(image=picture(1, images=3), combine_embeds="concat"))
    mean = scene.sample(scene.apply(image=picture(1, images=3), combine_embeds="average"))
    assert difference(many, mean) > ROUNDING
    assert torch.isfinite(many).all() and torch.isfinite(mean).all()


def test_a_mask_of_one_leaves_reference_pictures_out(flux: Scene) -> None:
    """Kontext: the rows of a reference picture belong to no mask; without a mask they take part."""
    reference = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(4))

    def with_reference(cond: Any) -> Any:
        return [[states, {**extra, "reference_latents": [reference]}] for states, extra in cond]

    conds = {"positive": with_reference(flux.positive), "negative": with_reference(flux.negative)}
    plain, whole = flux.sample(**conds), flux.sample(flux.apply(), **conds)
    masked = flux.sample(flux.apply(attn_mask=torch.ones(1, 16, 16)), **conds)
    nothing = flux.sample(flux.apply(attn_mask=torch.zeros(1, 16, 16)), **conds)
    assert torch.equal(nothing, plain)
    assert difference(masked, whole) > VISIBLE / 10
    assert difference(masked, plain) > VISIBLE


def test_maps_show_a_picture_where_its_mask_lets_it(scene: Scene) -> None:
    left = torch.zeros(1, 16, 16)
    left[:, :, :8] = 1.0
    maps = scene.maps(scene.apply(attn_mask=left))
    assert maps.shape == (1, 16, 16)
    assert maps[:, :, 10:].max() < 0.1 < maps[:, :, :6].mean()


@pytest.fixture(scope="module", params=[xlabs, instantx], ids=["XLabs", "InstantX"])
def flux_scene(host: Any, request: pytest.FixtureRequest) -> Scene:
    return Scene.of_transformer(host, TINY_FLUX, request.param(TINY_FLUX))


def test_a_controlnet_for_flux(flux_scene: Scene) -> None:
    """Both are seen, each beside the other; the adapter at 0 leaves the ControlNet as it is."""
    scene = flux_scene
    positive, negative = scene.host.call(
        "ControlNetApplyAdvanced",
        positive=scene.positive,
        negative=scene.negative,
        control_net=flux_controlnet(TINY_FLUX),
        image=picture(4),
        strength=0.5,
        start_percent=0.0,
        end_percent=1.0,
    )
    conds = {"positive": positive, "negative": negative}
    controlled, both = scene.sample(**conds), scene.sample(scene.apply(), **conds)
    assert difference(controlled, scene.sample()) > VISIBLE
    assert difference(both, controlled) > VISIBLE
    assert difference(both, scene.sample(scene.apply())) > VISIBLE
    assert difference(scene.sample(scene.apply(weight=0.0), **conds), controlled) < ROUNDING


def redux(scene: Scene, **strength: Any) -> Any:
    """The positive prompt with the words that Redux makes of a picture."""
    import comfy.sd
    from comfy.ldm.flux.redux import ReduxImageEncoder

    network = ReduxImageEncoder(48, TINY_FLUX.text_dim)
    randomise(network, 7)
    (seen,) = scene.host.call(
        "CLIPVisionEncode", clip_vision=scene.clip_vision, image=picture(5), crop="center"
    )
    return scene.host.call(
        "StyleModelApply",
        conditioning=scene.positive,
        style_model=comfy.sd.StyleModel(network),
        clip_vision_output=seen,
        **strength,
    )[0]


def test_redux(flux_scene: Scene) -> None:
    """Its words change the result, and the picture's rows stay where they are. Words that nothing
    may look at leave the adapter's result as it is without them."""
    scene, ones = flux_scene, torch.ones(1, 16, 16)
    for kind in ("multiply", "attn_bias"):
        positive = redux(scene, strength=0.7, strength_type=kind)
        both = scene.sample(scene.apply(), positive=positive)
        assert difference(both, scene.sample(positive=positive)) > VISIBLE
        assert difference(both, scene.sample(scene.apply())) > VISIBLE
        masked = scene.sample(scene.apply(attn_mask=ones), positive=positive)
        assert difference(masked, both) < ROUNDING
    unseen = redux(scene, strength=1e-30, strength_type="attn_bias")
    hidden, alone = scene.sample(scene.apply(), positive=unseen), scene.sample(scene.apply())
    assert difference(hidden, alone) < ROUNDING


# A base, its network and an adapter for it. The host counts on Flux's full width.
BITS = {
    "SD3.5": (
        Geometry("two blocks", "SD3", 2, 64, double=2, text_dim=4096, pooled=2048),
        sd3_network,
        lambda: sd3(SD3_SIZE, 48),
    ),
    "Flux": (
        Geometry("one block", "Flux", 24, 128, double=1, text_dim=4096, pooled=768),
        flux_network,
        lambda: xlabs(FLUX_SIZE, 48),
    ),
}


@pytest.mark.parametrize("base", ["SD3.5", pytest.param("Flux", marks=pytest.mark.slow)])
def test_a_base_in_8_bits(host: Any, base: str) -> None:
    """By the host's loader: the numbers stay in 8 bits, what comes out is what they make in 32."""
    import comfy.sd

    geometry, network, adapter = BITS[base]
    narrow = {key: value.to(torch.float8_e4m3fn) for key, value in network().items()}
    results = []
    for dtype in (torch.float8_e4m3fn, torch.float32):
        state = {key: value.to(dtype) for key, value in narrow.items()}
        model: Any = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
        assert {one.dtype for one in model.model.diffusion_model.parameters()} == {dtype}
        scene = Scene.of_transformer(host, geometry, adapter(), model)
        results.append(scene.sample(scene.apply(), cfg=1.0))
        assert difference(results[-1], scene.sample(cfg=1.0)) > VISIBLE
    assert difference(*results) < ROUNDING


def test_words_beside_pictures(flux: Scene) -> None:
    """Redux adds words to the prompt: the text is longer, the picture stays where it is."""
    extra = torch.randn(1, 5, TINY_FLUX.text_dim, generator=torch.Generator().manual_seed(6))
    longer = [[torch.cat([states, extra], 1), given] for states, given in flux.positive]
    ones = flux.sample(flux.apply(attn_mask=torch.ones(1, 16, 16)), positive=longer)
    whole = flux.sample(flux.apply(), positive=longer)
    assert difference(ones, whole) < ROUNDING


HALVES = torch.zeros(4, 16, 16)  # a mask for each of four latents
for number in range(4):
    HALVES[number, :, 3 * number : 3 * number + 5] = 1.0


def test_a_latent_of_a_batch_is_what_it_is_alone(scene: Scene) -> None:
    """With a mask for each latent, and alone with its own; at CFG 1 too."""
    alone = {"samples": scene.latents, "batch_index": [2]}
    for cfg in (4.0, 1.0):
        batch = scene.sample(scene.apply(attn_mask=HALVES), batch=4, cfg=cfg)
        one = scene.apply(attn_mask=HALVES[2:3])
        assert difference(batch[2:3], scene.sample(one, latent_image=alone, cfg=cfg)) < ROUNDING
        assert difference(batch, scene.sample(batch=4, cfg=cfg)) > VISIBLE


def test_a_negative_picture_acts_above_cfg_one_only(scene: Scene) -> None:
    models = [scene.apply(image_negative=picture(seed)) for seed in (8, 9)]
    guided, single = ([scene.sample(one, cfg=cfg) for one in models] for cfg in (4.0, 1.0))
    assert difference(*guided) > VISIBLE / 10
    assert torch.equal(*single)


def test_windows_of_a_batch_follow_their_latents(scene: Scene) -> None:
    """Pictures know nothing of each other, so that windows of them are the whole batch."""
    model = windowed_model(scene.host, scene.model)
    masks = torch.cat([HALVES, HALVES[:2].flip(-1)])
    whole, windowed = (
        scene.sample(scene.apply(one, attn_mask=masks), batch=6, steps=5)
        for one in (scene.model, model)
    )
    assert difference(windowed, whole) < ROUNDING


def test_half_precision_stays_close(scene: Scene) -> None:
    half = scene.model.clone()
    half.set_model_compute_dtype(torch.bfloat16)
    plain = difference(scene.sample(half), scene.sample())
    assert 0 < difference(scene.sample(scene.apply(half)), scene.sample(scene.apply())) < 2 * plain
