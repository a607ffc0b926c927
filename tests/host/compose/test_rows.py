"""Rows, latents and steps: each row gets its own image prompt, however the host makes a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.compose import Pack, Prompt, Scene, difference, sample, seeded, with_reference
from support.hosts.neighbours import area_conds, context_windows, foreign_add, lora, node, tiled

TOLERANCE = 1e-5


def equals(scene: Scene, pack: Pack, *prompts: Prompt, **known: Any) -> bool:
    got = sample(scene, pack.apply(scene.model, *prompts))
    return difference(got, with_reference(scene, *prompts, **known)) < TOLERANCE


def test_two_adapters_add_up(scene: Scene, pack: Pack) -> None:
    assert equals(scene, pack, Prompt(3), Prompt(4, weights=(0.5,)))


def test_their_order_does_not_matter(scene: Scene, pack: Pack) -> None:
    one, other = Prompt(3), Prompt(4, weights=(0.5,))
    first = sample(scene, pack.apply(scene.model, one, other))
    assert difference(sample(scene, pack.apply(scene.model, other, one)), first) < TOLERANCE


def test_low_memory_evaluates_conds_one_by_one(
    host: Any, scene: Scene, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    scene = area_conds(host, scene).but(batch=2)
    expected = with_reference(scene, Prompt(items=2))
    monkeypatch.setattr(
        comfy.model_management, "get_free_memory", lambda _=None, both=False: (0, 0) if both else 0
    )
    assert difference(sample(scene, pack.apply(scene.model, Prompt(items=2))), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("items", "weights"),
    [(3, (0.8,)), (3, (0.2, 1.0, 0.0)), (1, (0.2, 1.0, 0.0)), (2, (0.8,)), (5, (0.8,))],
    ids=["images", "images and weights", "weights", "fewer images", "more images"],
)
def test_image_i_belongs_to_latent_i(
    scene: Scene, pack: Pack, items: int, weights: tuple[float, ...]
) -> None:
    assert equals(scene.but(batch=3), pack, Prompt(items=items, weights=weights))


@pytest.mark.parametrize(("items", "weights"), [(2, (0.2, 0.9, 0.5)), (3, (0.2, 0.9))])
def test_the_last_of_the_fewer_serves_the_rest(
    scene: Scene, pack: Pack, items: int, weights: tuple[float, ...]
) -> None:
    assert equals(scene.but(batch=3), pack, Prompt(items=items, weights=weights))


def test_latents_of_tiles_keep_their_images(host: Any, scene: Scene, pack: Pack) -> None:
    assert equals(tiled(host, scene.but(batch=3)), pack, Prompt(items=3))


def test_windows_take_their_own_images(host: Any, scene: Scene, pack: Pack) -> None:
    assert equals(context_windows(host, scene), pack, Prompt(items=6, weights=(0.1, 0.9, 0.4)))


def test_windows_of_other_packs_name_their_latents(scene: Scene, pack: Pack) -> None:
    """AnimateDiff-Evolved gives the model some latents at a time, and says which in `ad_params`."""
    prompt = Prompt(items=4)

    def windowed(model: Any) -> Any:
        model = model.clone()

        def run(apply_model: Any, arguments: dict[str, Any]) -> Any:
            x, c = arguments["input"], dict(arguments["c"])
            chunks, out = len(arguments["cond_or_uncond"]), torch.empty_like(x)
            for window in ([0, 1], [2, 3]):
                rows = [chunk * 4 + item for chunk in range(chunks) for item in window]
                options = c["transformer_options"]
                sub = {
                    **c,
                    "c_crossattn": c["c_crossattn"][rows],
                    "transformer_options": {
                        **options,
                        "sigmas": options["sigmas"][window],
                        "ad_params": {"sub_idxs": window, "full_length": 4},
                    },
                }
                out[rows] = apply_model(x[rows], arguments["timestep"][rows], **sub)
            return out

        model.set_model_unet_function_wrapper(run)
        return model

    scene = scene.but(batch=4)
    expected = with_reference(scene, prompt)
    got = sample(scene, windowed(pack.apply(scene.model, prompt)))
    assert difference(got, expected) < TOLERANCE


@pytest.mark.parametrize(("start_at", "end_at"), [(0.0, 0.5), (0.5, 1.0), (0.3, 0.7), (0.4, 0.4)])
def test_range_of_steps(scene: Scene, pack: Pack, start_at: float, end_at: float) -> None:
    scene = scene.but(steps=4, cfg=2.0)
    assert equals(scene, pack, Prompt(start_at=start_at, end_at=end_at))


def test_two_ranges_share_a_run(scene: Scene, pack: Pack) -> None:
    prompts = Prompt(3, end_at=0.5), Prompt(4, start_at=0.5, weights=(0.5,))
    assert equals(scene.but(steps=4, cfg=2.0), pack, *prompts)


def test_weight_0_is_the_untouched_model_bit_for_bit(scene: Scene, pack: Pack) -> None:
    bare = sample(scene)
    assert torch.equal(sample(scene, pack.apply(scene.model, Prompt(weights=(0.0,)))), bare)


def test_outside_its_range_it_is_the_untouched_model_bit_for_bit(scene: Scene, pack: Pack) -> None:
    between = Prompt(start_at=0.3, end_at=0.6)  # the two steps lie at 0 and at 1
    assert torch.equal(sample(scene, pack.apply(scene.model, between)), sample(scene))


@pytest.mark.slow
def test_everything_at_once(host: Any, scene: Scene, pack: Pack) -> None:
    prompts = Prompt(3, items=2, weights=(0.9, 0.3)), Prompt(4, end_at=0.6)
    scene = area_conds(host, lora(host, scene)).but(batch=2, steps=3)
    scene = node("FreeU_V2", b1=1.1, b2=1.2, s1=0.9, s2=0.2)(host, scene)
    scene = node("PerturbedAttentionGuidance", scale=2.0)(host, scene)
    patched = foreign_add(host, scene.but(model=pack.apply(scene.model, *prompts)))
    scene = scene.but(reference={**patched.reference, "model": scene.model})
    assert difference(sample(patched), with_reference(scene, *prompts)) < TOLERANCE


def test_wrappers_of_other_packs_may_name_what_they_pass(scene: Scene, pack: Pack) -> None:
    import comfy.patcher_extension

    names = ("c_concat", "c_crossattn", "control", "transformer_options")

    def naming(executor: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(x, t, **dict(zip(names, args, strict=True)), **kwargs)

    wrapped = scene.model.clone()
    wrapped.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "naming", naming)
    expected = sample(scene, pack.apply(scene.model, Prompt()))
    assert torch.equal(sample(scene, pack.apply(wrapped, Prompt())), expected)


def test_device_copies_hold_a_window_and_not_all_frames(
    host: Any, scene: Scene, pack: Pack
) -> None:
    """What a run holds on the device is the same for 12 frames and for 1,000."""
    import comfy.patcher_extension

    held: dict[int, int] = {}
    for frames in (12, 1000):

        def spy(executor: Any, *args: Any, frames: int = frames, **kwargs: Any) -> Any:
            out = executor(*args, **kwargs)
            run = args[5]["ip_adapter_run"]
            kept = (value for value in run.prepared.values() if isinstance(value, tuple))
            pairs = [value[1] for value in kept]  # beside them are single numbers
            sizes = [sum(t.numel() for t in (p.key, p.value)) for p in pairs]
            held[frames] = max(held.get(frames, 0), 4 * sum(sizes))
            return out

        windows = context_windows(host, scene)
        model = pack.apply(windows.model, Prompt(items=frames)).clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "spy", spy)
        sample(windows, model)
    assert held[12] == held[1000] > 0


def test_projecting_many_frames_keeps_few_on_the_device(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No projection sees more than a fixed number of frames at once."""
    adapter, image, plan = pack.parts(Prompt(items=1000))
    seen: list[int] = []
    functional = pack.module("adapters.key_values").functional
    linear = functional.linear

    def counted(tokens: Any, weight: Any) -> Any:
        seen.append(len(tokens))
        return linear(tokens, weight)

    monkeypatch.setattr(functional, "linear", counted)
    (first, *_) = adapter.key_values(image)
    assert max(seen) == pack.module("adapters.key_values").TOKENS_AT_ONCE
    source = pack.module("attention.folding").Source.IMAGE
    key = adapter.checkpoint.ip_adapter["1.to_k_ip.weight"]
    assert torch.allclose(first[source].key, image.cond @ key.T, atol=1e-5)
    assert plan.weights == (0.8,) and seeded(1, 2).shape == (2,)
