"""The protocol of an attn2 slot: clones, copies, devices, threads, and callers that
leave things out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.hosts.compose import Pack, Prompt, Scene, difference, sample, seeded, with_reference
from support.hosts.neighbours import ForeignStack, foreign_delta, foreign_replacement, stack_foreign

TOLERANCE = 1e-5


def slots(model: Any) -> dict[Any, Any]:
    return model.model_options["transformer_options"]["patches_replace"]["attn2"]


def test_both_key_forms_hold_one_object_where_blocks_are_single(scene: Scene, pack: Pack) -> None:
    held = slots(pack.apply(scene.model, Prompt()))
    assert len(held) == 32
    assert all(held[key] is held[(*key, 0)] for key in held if len(key) == 2)
    assert ("middle", 0, 0) in held and not any(key[:2] == ("middle", 1) for key in held)


def test_blocks_of_several_transformers_get_full_keys_only(pack: Pack) -> None:
    from support.models.unets import TINY_SDXL, build_model, random_adapter

    prompt = Prompt()
    prompt.state = random_adapter(TINY_SDXL)
    model = pack.apply(build_model(TINY_SDXL), prompt)
    assert len(slots(model)) == 70 and all(len(key) == 3 for key in slots(model))


def test_an_object_under_a_short_key_is_chained_by_every_transformer_of_the_block(
    pack: Pack,
) -> None:
    from support.models.unets import TINY_SDXL, build_model, random_adapter

    model = build_model(TINY_SDXL)
    model.set_model_attn2_replace(foreign_replacement, "output", 0)
    prompt = Prompt()
    prompt.state = random_adapter(TINY_SDXL)
    held = slots(pack.apply(model, prompt))
    assert all(held["output", 0, i].previous is foreign_replacement for i in range(10))


def test_applying_leaves_the_given_model_alone(scene: Scene, pack: Pack) -> None:
    one = pack.apply(scene.model, Prompt())
    before = dict(slots(one))
    pack.apply(one, Prompt(4))
    assert slots(one) == before
    assert "patches_replace" not in scene.model.model_options["transformer_options"]


def test_what_is_stacked_onto_a_clone_stays_there(scene: Scene, pack: Pack) -> None:
    model = pack.apply(scene.model, Prompt())
    stacked = stack_foreign(model.clone())
    assert all(patch.stacked for patch in slots(stacked).values())
    assert not any(patch.stacked for patch in slots(model).values())


def test_what_is_stacked_through_a_short_key_acts_once(scene: Scene, pack: Pack) -> None:
    """Under both keys lies one object, also after cloning."""
    model = stack_foreign(pack.apply(scene.model, Prompt())).clone()
    known = {"terms": (foreign_delta,)}
    assert difference(sample(scene, model), with_reference(scene, Prompt(), **known)) < TOLERANCE


def test_keys_and_values_are_shared_by_all_clones(scene: Scene, pack: Pack) -> None:
    """Also where the host deep-copies options, as hosts up to 0.8 do."""
    model = pack.apply(scene.model, Prompt())
    copied = copy.deepcopy(model.model_options)["transformer_options"]["patches_replace"]["attn2"]
    for other in (slots(model.clone().clone()), copied):
        for key, patch in slots(model).items():
            assert other[key].injections == patch.injections


def test_wrappers_are_registered_once(scene: Scene, pack: Pack) -> None:
    model = pack.apply(scene.model, Prompt(3), Prompt(4), Prompt(5)).clone()
    kinds = [kind for kind, by_key in model.wrappers.items() for _ in by_key.get("ip_adapter", ())]
    assert sorted(kinds) == ["apply_model", "calc_cond_batch", "sampler_sample"]


def test_the_host_is_offered_what_the_slot_held_before(scene: Scene, pack: Pack) -> None:
    moves: list[Any] = []

    class Foreign(ForeignStack):
        def to(self, device: Any) -> Any:
            moves.append(device)
            return self

        def models(self) -> list[Any]:
            return ["a patcher"]

    model = scene.model.clone()
    model.set_model_attn2_replace(Foreign(), "input", 4)
    patch = slots(pack.apply(model, Prompt()))["input", 4, 0]
    assert patch.to(torch.float16) is patch and moves[-1] is torch.float16
    assert patch.models() == ["a patcher"]


def test_what_the_slot_held_before_may_move_to_a_new_object(scene: Scene, pack: Pack) -> None:
    class Moving(ForeignStack):
        def to(self, device: Any) -> Any:
            return Moving()

    model = scene.model.clone()
    model.set_model_attn2_replace(Moving(), "input", 4)
    patch = slots(pack.apply(model, Prompt()))["input", 4, 0]
    before, moved = patch.previous, patch.to("cpu")
    assert patch.previous is before and moved.previous is not before
    assert moved.injections == patch.injections


def test_moving_is_free_and_safe_from_many_threads(scene: Scene, pack: Pack) -> None:
    patch = next(iter(slots(pack.apply(scene.model, Prompt())).values()))
    query, results = seeded(1, 2, 256, 32), []
    extra = {"n_heads": 8, "cond_or_uncond": [1, 0]}

    def work() -> None:
        assert patch.to(torch.device("cpu")) is patch
        results.append(patch(query, query[:, :77], query[:, :77], extra))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(torch.equal(result, results[0]) for result in results)


def test_sigma_is_read_at_most_once_per_call_and_only_if_needed(scene: Scene, pack: Pack) -> None:
    reads: list[int] = []

    class Sigmas(torch.Tensor):
        def flatten(self, *dims: Any) -> torch.Tensor:
            reads.append(1)
            return self.as_subclass(torch.Tensor).flatten(*dims)

    CallState = pack.module("attention.rows").CallState
    state = CallState((True,), (0,), sigmas=torch.tensor([3.0]))
    sigmas = torch.tensor([3.0]).as_subclass(Sigmas)
    state = CallState((True,), (0,), sigmas=sigmas)
    query = seeded(1, 1, 256, 32)
    extra = {"n_heads": 8, "ip_adapter_call": state}
    always = slots(pack.apply(scene.model, Prompt()))["input", 1, 0]
    ranged = slots(pack.apply(scene.model, Prompt(end_at=0.5)))["input", 1, 0]
    always(query, query, query, extra)
    assert not reads
    for _ in range(3):
        ranged(query, query, query, extra)
    assert len(reads) == 1


@pytest.mark.parametrize(
    "missing", ["sigmas", "cond_or_uncond", "activations_shape", "original_shape", "block", "uuids"]
)
def test_callers_may_leave_keys_out(scene: Scene, pack: Pack, missing: str) -> None:
    """Older or odd callers: without labels rows count as cond; without shapes only a mask fails."""
    patch = slots(pack.apply(scene.model, Prompt(end_at=0.9)))["input", 1, 0]
    extra = {
        "n_heads": 8,
        "cond_or_uncond": [0],
        "uuids": ["unknown"],
        "sigmas": torch.tensor([3.0]),
        "activations_shape": [1, 32, 16, 16],
        "original_shape": [1, 4, 16, 16],
        "block": ("input", 1),
    }
    query = seeded(1, 1, 256, 32)
    whole = patch(query, query, query, extra)
    del extra[missing]
    assert torch.equal(patch(query, query, query, extra), whole)


def test_without_heads_it_says_so(scene: Scene, pack: Pack) -> None:
    model = scene.model.clone()
    model.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 1)
    patch = slots(pack.apply(model, Prompt()))["input", 1, 0]
    query = seeded(1, 1, 256, 32)
    with pytest.raises(ValueError, match="n_heads"):
        patch(query, query, query, {})


def test_a_mask_without_any_shape_says_so(scene: Scene, pack: Pack) -> None:
    patch = slots(pack.apply(scene.model, Prompt(mask=torch.ones(1, 8, 8))))["input", 1, 0]
    query = seeded(1, 1, 256, 32)
    with pytest.raises(ValueError, match="activations_shape"):
        patch(query, query, query, {"n_heads": 8})


def test_an_occupant_that_cannot_be_called_is_named(scene: Scene, pack: Pack) -> None:
    model = scene.model.clone()
    model.set_model_attn2_replace({"weights": 1}, "input", 4)
    with pytest.raises(ValueError, match=r"\('input', 4, 0\).*holds a dict, which is not callable"):
        pack.apply(model, Prompt())


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(scene: Scene, pack: Pack, weight: Any) -> None:
    with pytest.raises(ValueError, match="finite number"):
        pack.apply(scene.model, Prompt(weights=(weight,)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.full((1, 8, 8), float("nan")), "NaN"),
        (torch.zeros(2, 3, 8, 8), "expected"),
        (torch.zeros(0, 8, 8), "at least one pixel"),
        (torch.zeros(8), "expected"),
    ],
    ids=["NaN", "rank 4", "empty", "rank 1"],
)
def test_bad_masks_are_refused(scene: Scene, pack: Pack, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack.apply(scene.model, Prompt(mask=mask))


def test_a_start_after_the_end_is_refused(scene: Scene, pack: Pack) -> None:
    with pytest.raises(ValueError, match="lies after"):
        pack.apply(scene.model, Prompt(start_at=0.8, end_at=0.2))


def test_an_attention_override_sees_the_text_once(scene: Scene, pack: Pack) -> None:
    """`optimized_attention_override` (0.3.60 and later) is for the host's attention; the image's
    share must not go through it again."""
    import comfy.ldm.modules.attention as host_attention

    if not hasattr(host_attention, "wrap_attn"):
        pytest.skip("this host has no attention override")
    model, tokens = pack.apply(scene.model, Prompt()), []

    def override(func: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        tokens.append(k.shape[1])
        return func(q, k, v, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert difference(sample(scene, model), with_reference(scene, Prompt())) < TOLERANCE
    assert tokens.count(77) == 16 * scene.steps and len(tokens) == 2 * 16 * scene.steps


class TestCompiled:
    """Core's TorchCompileModel: the graph must not freeze what a call changes."""

    @pytest.fixture
    def compiled(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """The core node, with a backend that traces as the real ones do but compiles nothing."""
        compile_ = torch.compile

        def eager(*args: Any, **kwargs: Any) -> Any:
            return compile_(*args, **{**kwargs, "backend": "eager", "options": None})

        monkeypatch.setattr(torch, "compile", eager)

        def change(model: Any) -> Any:
            return host.call("TorchCompileModel", model=model, backend="inductor")[0]

        yield change
        torch._dynamo.reset()

    @pytest.mark.slow
    @pytest.mark.parametrize("order", ["adapter first", "adapter last"])
    def test_ranges_and_rows_stay_alive(
        self, scene: Scene, pack: Pack, compiled: Any, order: Any
    ) -> None:
        scene = scene.but(steps=4, cfg=3.0)
        prompts = Prompt(3, end_at=0.5), Prompt(4, start_at=0.4)
        if order == "adapter first":
            model = compiled(pack.apply(scene.model, *prompts))
        else:
            model = pack.apply(compiled(scene.model), *prompts)
        expected = with_reference(scene, *prompts)
        for _ in range(2):
            assert difference(sample(scene, model), expected) < TOLERANCE
