"""What must hold whatever the adapter: measured on latents of the host's own KSampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.hosts.scene import Scene, picture, snapshot
from support.models.transformer_adapters import instantx, sd3, xlabs
from support.models.transformers import TINY_CHROMA, TINY_FLUX, TINY_SD3
from support.models.unets import TINY_SD15, TINY_SDXL
from torch import Tensor

NOTHING = 1e-6  # relative to the largest latent
ROUNDING = 1e-5  # where sums are taken in another order, step after step
VISIBLE = 1e-3


SCENES: dict[str, Callable[[Any], Scene]] = {
    "SD1.5": lambda host: Scene.build(host, TINY_SD15),
    "SD1.5 Plus": lambda host: Scene.build(host, TINY_SD15, plus=True),
    "SDXL": lambda host: Scene.build(host, TINY_SDXL),
    "Flux, XLabs": lambda host: Scene.of_transformer(host, TINY_FLUX, xlabs(TINY_FLUX)),
    "Flux, InstantX": lambda host: Scene.of_transformer(host, TINY_FLUX, instantx(TINY_FLUX)),
    "Chroma, XLabs": lambda host: Scene.of_transformer(host, TINY_CHROMA, xlabs(TINY_CHROMA)),
    "SD3.5": lambda host: Scene.of_transformer(host, TINY_SD3, sd3(TINY_SD3)),
}


@pytest.fixture(scope="module", params=SCENES)
def scene(host: Any, request: pytest.FixtureRequest) -> Scene:
    return SCENES[request.param](host)


@pytest.fixture(scope="module")
def plain(scene: Scene) -> Tensor:
    """The latents without an adapter."""
    return scene.sample()


@pytest.fixture(scope="module")
def prompted(scene: Scene) -> Tensor:
    """The latents with one image prompt in the usual way."""
    return scene.sample(scene.apply())


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_the_adapter_acts(scene: Scene, plain: Tensor, prompted: Tensor) -> None:
    other = scene.sample(scene.apply(image=picture(2)))
    pairs = [(prompted, plain), (other, plain), (prompted, other)]
    assert min(difference(one, two) for one, two in pairs) > VISIBLE


@pytest.mark.parametrize("number", range(3))
def test_weight_0_is_no_adapter(scene: Scene, plain: Tensor, number: int) -> None:
    model = scene.apply(weight=0.0, weight_type=scene.weight_types[number])
    assert torch.equal(scene.sample(model), plain)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (1.0, 1.0), (0.9, 0.95)])
def test_outside_its_range_is_no_adapter(
    scene: Scene, plain: Tensor, start: float, end: float
) -> None:
    assert torch.equal(scene.sample(scene.apply(start_at=start, end_at=end)), plain)


def test_a_range_ends_where_it_says(scene: Scene, plain: Tensor) -> None:
    seen: list[Tensor] = []

    def steps(model: Any) -> list[Tensor]:
        import comfy.sample

        seen.clear()
        noise = torch.randn(scene.latents.shape, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            comfy.sample.sample(
                model,
                noise,
                4,
                4.0,
                "euler",
                "normal",
                scene.positive,
                scene.negative,
                torch.zeros_like(noise),
                callback=lambda step, x0, x, total: seen.append(x0.clone()),
                disable_pbar=True,
            )
        return list(seen)

    without, late = steps(scene.model), steps(scene.apply(start_at=0.5))
    early, whole = steps(scene.apply(end_at=0.3)), steps(scene.apply())
    assert torch.equal(late[0], without[0]) and not torch.equal(late[-1], without[-1])
    assert torch.equal(early[0], whole[0]) and not torch.equal(early[-1], whole[-1])


def test_apply_leaves_its_model_untouched(scene: Scene, plain: Tensor) -> None:
    before = snapshot(scene.model)
    patched = scene.apply()
    scene.sample(patched)
    assert snapshot(scene.model) == before
    chained = snapshot(patched)
    scene.sample(scene.apply(patched, image=picture(2)))
    assert snapshot(patched) == chained


def test_nothing_is_left_behind(scene: Scene, plain: Tensor, prompted: Tensor) -> None:
    assert torch.equal(scene.sample(), plain)


def test_a_second_run_and_a_clone_give_the_same(scene: Scene, prompted: Tensor) -> None:
    model = scene.apply()
    for again in (model, model, model.clone()):
        assert torch.equal(scene.sample(again), prompted)


def test_branches_do_not_see_each_other(scene: Scene, prompted: Tensor) -> None:
    trunk = scene.apply()
    branches = [scene.apply(trunk, image=picture(seed)) for seed in (2, 3)]
    first, second = (scene.sample(branch) for branch in branches)
    assert difference(first, second) > VISIBLE
    assert torch.equal(scene.sample(trunk), prompted)
    assert torch.equal(scene.sample(branches[0]), first)


def test_two_adapters_add_up_in_any_order(scene: Scene) -> None:
    one = scene.sample(scene.apply(scene.apply(), image=picture(2), weight=0.5))
    other = scene.sample(scene.apply(scene.apply(image=picture(2), weight=0.5)))
    assert difference(one, other) < ROUNDING


def _lora(scene: Scene, rank: int = 2) -> dict[str, Tensor]:
    """A real LoRA file's tensors for matrices of every attention that the adapter acts beside."""
    g = torch.Generator().manual_seed(9)
    state = {}
    for name, weight in scene.model.model.diffusion_model.state_dict().items():
        if scene.attention in name and name.endswith("weight"):
            rows, columns = weight.shape
            stem = f"diffusion_model.{name.removesuffix('.weight')}"
            state[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=g) * 0.2
            state[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=g) * 0.2
    return state


def test_a_lora_before_or_after_makes_no_difference(
    scene: Scene, plain: Tensor, prompted: Tensor
) -> None:
    from comfy.sd import load_lora_for_models

    def with_lora(model: Any) -> Any:
        return load_lora_for_models(model, None, _lora(scene), 0.8, 0.0)[0]

    before, after = scene.apply(with_lora(scene.model)), with_lora(scene.apply())
    latents = scene.sample(before)
    assert difference(latents, scene.sample(after)) < NOTHING
    assert difference(latents, prompted) > VISIBLE
    assert torch.equal(scene.sample(), plain)


@pytest.mark.parametrize("size", [(16, 16), (100, 60)], ids=["latent size", "another shape"])
def test_masks_of_one_and_zero(
    scene: Scene, plain: Tensor, prompted: Tensor, size: tuple[int, int]
) -> None:
    ones = scene.sample(scene.apply(attn_mask=torch.ones(1, *size)))
    assert difference(ones, prompted) < NOTHING
    zeros = scene.sample(scene.apply(attn_mask=torch.zeros(1, *size)))
    assert torch.equal(zeros, plain)


def test_a_mask_per_latent_confines_the_adapter_to_it(scene: Scene) -> None:
    masks = torch.stack([torch.zeros(16, 16), torch.ones(16, 16)])
    plain, whole = scene.sample(batch=2), scene.sample(scene.apply(), batch=2)
    masked = scene.sample(scene.apply(attn_mask=masks), batch=2)
    assert torch.equal(masked[0], plain[0])
    assert difference(masked[1], whole[1]) < NOTHING


def test_cond_rows_get_the_image_and_uncond_rows_the_negative(scene: Scene) -> None:
    def sampled(image: int, negative: int, cfg: float) -> Tensor:
        model = scene.apply(image=picture(image), image_negative=picture(negative))
        return scene.sample(model, cfg=cfg)

    # CFG 0 is the uncond prediction alone, CFG 1 the cond prediction alone.
    assert torch.equal(sampled(1, 2, cfg=0.0), sampled(3, 2, cfg=0.0))
    assert difference(sampled(1, 2, cfg=0.0), sampled(1, 3, cfg=0.0)) > VISIBLE
    assert torch.equal(sampled(1, 2, cfg=1.0), sampled(1, 3, cfg=1.0))
    assert difference(sampled(1, 2, cfg=1.0), sampled(3, 2, cfg=1.0)) > VISIBLE


def test_swapping_text_pictures_and_the_sign_of_guidance_gives_the_same(scene: Scene) -> None:
    model = scene.apply(image=picture(1), image_negative=picture(2))
    swapped = scene.apply(image=picture(2), image_negative=picture(1))
    texts: Any = {"positive": scene.negative, "negative": scene.positive}
    latents = scene.sample(model, cfg=4.0)
    assert difference(latents, scene.sample(swapped, cfg=-3.0, **texts)) < ROUNDING


def test_a_batch_gives_every_latent_the_same_prompt(scene: Scene, prompted: Tensor) -> None:
    batch = scene.sample(scene.apply(), batch=3)
    assert difference(batch[:1], prompted) < ROUNDING


def test_random_state_of_the_process_is_left_alone(scene: Scene) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    scene.apply()
    assert torch.equal(torch.rand(1), expected)
