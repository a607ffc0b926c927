"""An image prompt on one conditioning, through the host's hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.compose import (
    Pack,
    Prompt,
    Scene,
    conditioning,
    difference,
    naive_adapter,
    sample,
    text,
    with_reference,
)
from support.hosts.neighbours import area_conds, control_net, foreign_function, lora, mask_conds
from support.hosts.wires import tiny_wires

TOLERANCE = 1e-5


def hooked(host: Any, cond: Any, hooks: Any) -> Any:
    """A conditioning that carries hooks."""
    return host.call(
        "ConditioningSetProperties",
        cond_NEW=cond,
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )[0]


def hooked_pair(host: Any, scene: Scene, hooks: Any) -> Scene:
    """Both prompts of a scene, carrying hooks."""
    positive, negative = (hooked(host, cond, hooks) for cond in (scene.positive, scene.negative))
    return scene.but(positive=positive, negative=negative)


def keyframes(host: Any, hooks: Any, *frames: tuple[float, float]) -> Any:
    """Hooks with strengths from given percentages on: (percent, strength)."""
    made = None
    for percent, strength in frames:
        (made,) = host.call(
            "CreateHookKeyframe", strength_mult=strength, start_percent=percent, prev_hook_kf=made
        )
    return host.call("SetHookKeyframes", hooks=hooks, hook_kf=made)[0]


def test_on_both_prompts_it_acts_as_on_the_model(host: Any, scene: Scene, pack: Pack) -> None:
    one = hooked_pair(host, scene, pack.hooks(scene.model, Prompt()))
    assert difference(sample(one), sample(scene, pack.apply(scene.model, Prompt()))) < TOLERANCE


def test_on_the_positive_alone_the_negative_is_untouched(
    host: Any, scene: Scene, pack: Pack
) -> None:
    one = scene.but(positive=hooked(host, scene.positive, pack.hooks(scene.model, Prompt())))
    expected = with_reference(scene, naive_adapter(scene, Prompt(), only=text(1)))
    assert difference(sample(one), expected) < TOLERANCE
    assert difference(sample(scene), expected) > 100 * TOLERANCE


def two_prompts(host: Any, scene: Scene, pack: Any, images: tuple[Prompt, Prompt]) -> Scene:
    parts = [
        hooked(host, conditioning(text(seed)), pack.hooks(scene.model, image))
        for seed, image in zip((1, 6), images, strict=True)
    ]
    return scene.but(positive=parts[0] + parts[1])


def test_two_prompts_with_two_images(host: Any, scene: Scene, pack: Pack) -> None:
    images = Prompt(3), Prompt(4)
    both = two_prompts(host, scene, pack, images)
    reference = scene.but(positive=conditioning(text(1)) + conditioning(text(6)))
    adapters = [
        naive_adapter(scene, image, only=text(seed))
        for seed, image in zip((1, 6), images, strict=True)
    ]
    assert difference(sample(both), with_reference(reference, *adapters)) < TOLERANCE


def test_two_prompts_equal_two_runs_of_each(host: Any, scene: Scene, pack: Pack) -> None:
    """One step at CFG 1 is linear in the prompts: the pair is the mean of two runs, each with its
    image on the MODEL."""
    scene, images = scene.but(steps=1, cfg=1.0), (Prompt(3), Prompt(4))
    both = sample(two_prompts(host, scene, pack, images))
    runs = [
        sample(scene.but(positive=conditioning(text(seed))), pack.apply(scene.model, image))
        for seed, image in zip((1, 6), images, strict=True)
    ]
    assert difference(both, torch.stack(runs).mean(0)) < TOLERANCE


def test_keyframes_scale_it_and_0_is_exactly_nothing(host: Any, scene: Scene, pack: Pack) -> None:
    scene = scene.but(steps=4, cfg=1.0)
    frames = (0.0, 1.0), (0.4, 0.5), (0.7, 0.0)
    hooks = keyframes(host, pack.hooks(scene.model, Prompt()), *frames)
    sampling = scene.model.get_model_object("model_sampling")
    starts = [(float(sampling.percent_to_sigma(percent)), value) for percent, value in frames]

    def strength(sigma: float) -> float:
        return [value for start, value in starts if sigma <= start][-1]

    one = scene.but(positive=hooked(host, scene.positive, hooks))
    expected = with_reference(scene, naive_adapter(scene, Prompt(), strength=strength))
    assert difference(sample(one), expected) < TOLERANCE


def test_strength_0_is_the_untouched_model_bit_for_bit(host: Any, scene: Scene, pack: Pack) -> None:
    hooks = keyframes(host, pack.hooks(scene.model, Prompt()), (0.0, 0.0))
    assert torch.equal(
        sample(scene.but(positive=hooked(host, scene.positive, hooks)).but(cfg=1.0)),
        sample(scene.but(cfg=1.0)),
    )


def test_keyframes_leave_the_given_hooks_alone(host: Any, scene: Scene, pack: Pack) -> None:
    hooks = pack.hooks(scene.model, Prompt())
    keyframes(host, hooks, (0.0, 0.0))
    acts = sample(scene.but(positive=hooked(host, scene.positive, hooks)))
    assert difference(acts, sample(scene)) > 100 * TOLERANCE


@pytest.mark.parametrize("change", [area_conds, mask_conds, control_net, lora, foreign_function])
def test_beside_other_nodes(host: Any, scene: Scene, pack: Pack, change: Any) -> None:
    scene = change(host, scene).but(batch=2)
    one = hooked_pair(host, scene, pack.hooks(scene.model, Prompt()))
    assert difference(sample(one), with_reference(scene, Prompt())) < TOLERANCE


def test_beside_an_adapter_on_the_model(host: Any, scene: Scene, pack: Pack) -> None:
    patched = scene.but(model=pack.apply(scene.model, Prompt(4, weights=(0.5,))))
    one = patched.but(positive=hooked(host, scene.positive, pack.hooks(scene.model, Prompt(3))))
    adapters = (
        naive_adapter(scene, Prompt(4, weights=(0.5,))),
        naive_adapter(scene, Prompt(3), only=text(1)),
    )
    assert difference(sample(one), with_reference(scene, *adapters)) < TOLERANCE


def test_two_hooks_on_one_prompt_add_up(host: Any, scene: Scene, pack: Pack) -> None:
    first = pack.hooks(scene.model, Prompt(3))
    both = pack.hooks(scene.model, Prompt(4), before=first)
    one = hooked_pair(host, scene, both)
    assert difference(sample(one), with_reference(scene, Prompt(3), Prompt(4))) < TOLERANCE
    assert len(first) == 1


def test_a_run_with_hooks_leaves_the_model_alone(host: Any, scene: Scene, pack: Pack) -> None:
    bare = sample(scene)
    sample(hooked_pair(host, scene, pack.hooks(scene.model, Prompt())))
    assert torch.equal(sample(scene), bare)


def test_of_another_model_it_says_so(host: Any, scene: Scene, pack: Pack) -> None:
    hooks = pack.hooks(scene.model, Prompt())
    options = {"patches_replace": {}}
    layer = next(iter(hooks.hooks[0].injections))
    transformer_options: dict[str, Any] = {}
    hooks.hooks[0].on_apply_hooks(scene.model, transformer_options)
    (patched,) = transformer_options["ip_adapter_hooks"]
    patch = patched(options)["patches_replace"]["attn2"][tuple(layer.block)]
    query = torch.zeros(1, 4, 2 * layer.width)
    with pytest.raises(ValueError, match="the same MODEL that samples"):
        patch(query, query, query, {"n_heads": 2})


def test_the_node_makes_hooks(host: Any) -> None:
    wires = tiny_wires(host)
    (hooks,) = host.call(
        "IPAdapterHook",
        **wires,
        weight=0.7,
        weight_type="linear",
        combine_embeds="concat",
        start_at=0.0,
        end_at=1.0,
        embeds_scaling="V only",
    )
    (hook,) = hooks.hooks
    assert len(hook.injections) == 16
    assert "patches_replace" not in wires["model"].model_options["transformer_options"]
