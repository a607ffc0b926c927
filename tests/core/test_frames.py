"""Weight curves, schedules over images, prompt schedules and the layer weights grammar."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter.attention.weight_texts import (
    number,
    numbers,
    parse_layer_weights,
    parse_weights,
    whole_number,
)
from ipadapter.frames import Method, Timing, WeightsStrategy, format_layer_weights

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.0, 0.0", (1.0, 0.0)),
        ("1\n.5\n\n0", (1.0, 0.5, 0.0)),
        ("-1;+2;3e-1,", (-1.0, 2.0, 0.3)),
        ("1.0,\r\n 0.25 ; ", (1.0, 0.25)),
        ("", ()),
        (" \n,;", ()),
    ],
)
def test_weight_lists(text: str, expected: tuple[float, ...]) -> None:
    assert parse_weights(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0, x", r'weights, number 2: expected a number such as 0\.8, got "x"'),
        ("1 0", 'number 1: .* got "1 0"'),
        ("0.5\nnan", 'number 2: .* got "nan"'),
        ("inf", 'got "inf"'),
        ("1e999", 'got "1e999"'),
        ("1_0", 'got "1_0"'),
        ("٣", 'got "٣"'),
    ],
)
def test_a_bad_weight_is_quoted_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_weights(text)


def test_linear_timing_goes_from_first_to_last() -> None:
    strategy = WeightsStrategy(weights=(1.0, 9.0, 0.0), frames=5)
    assert strategy.curve() == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_easings_mean_what_they_say() -> None:
    def curve(timing: Timing) -> tuple[float, ...]:
        return WeightsStrategy((0.0, 1.0), timing, frames=11).curve()

    ease_in, ease_out, both = (
        curve(t) for t in (Timing.EASE_IN, Timing.EASE_OUT, Timing.EASE_IN_OUT)
    )
    for index in range(10):
        time = index / 10
        assert math.isclose(ease_in[index], 1 - math.cos(time * math.pi / 2), abs_tol=1e-12)
        assert math.isclose(ease_out[index], math.sin(time * math.pi / 2), abs_tol=1e-12)
        assert math.isclose(both[index], (1 - math.cos(time * math.pi)) / 2, abs_tol=1e-12)
    assert ease_in[1] < 0.1 < ease_out[1]  # in starts slowly, out does not
    assert ease_in[-1] == ease_out[-1] == both[-1] == 1.0
    assert math.isclose(both[5], 0.5)


@pytest.mark.parametrize("timing", [t for t in Timing if t is not Timing.CUSTOM])
@given(
    frames=st.integers(0, 30),
    start=st.integers(0, 40),
    end=st.integers(0, 40),
    ends=st.lists(st.floats(-1, 3), max_size=3),
)
def test_any_curve_has_its_length_and_stays_between_its_ends(
    timing: Timing, frames: int, start: int, end: int, ends: list[float]
) -> None:
    curve = WeightsStrategy(tuple(ends), timing, frames, start, end).curve()
    first, last = (ends[0], ends[-1]) if ends else (0.0, 1.0)
    assert len(curve) == (frames or max(1, len(ends)))
    assert all(min(first, last) - 1e-9 <= weight <= max(first, last) + 1e-9 for weight in curve)
    assert all(weight == first for weight in curve[:start])
    assert all(weight == last for weight in curve[max(start, end) :])


def test_short_schedules() -> None:
    assert WeightsStrategy(frames=0).curve() == (1.0, 0.0)
    assert WeightsStrategy(frames=1).curve() == (1.0,)
    assert WeightsStrategy(frames=2).curve() == (1.0, 0.0)
    assert WeightsStrategy(frames=3, end_frame=0).curve() == (0.0, 0.0, 0.0)
    assert WeightsStrategy(frames=3, start_frame=9).curve() == (1.0, 1.0, 1.0)
    assert WeightsStrategy(frames=4, start_frame=2, end_frame=3).curve() == (1.0, 1.0, 1.0, 0.0)


def test_custom_timing_is_the_list_itself() -> None:
    strategy = WeightsStrategy(
        (0.2, 0.9, 0.4), Timing.CUSTOM, frames=16, start_frame=2, end_frame=1
    )
    assert strategy.curve() == (0.2, 0.9, 0.4)
    with pytest.raises(ValueError, match="custom timing needs at least one number"):
        WeightsStrategy((), Timing.CUSTOM)


def test_random_timing_is_seeded_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    strategy = WeightsStrategy((0.2, 0.4), Timing.RANDOM, frames=50, seed=3)
    assert strategy.curve() == WeightsStrategy((0.2, 0.4), Timing.RANDOM, frames=50, seed=3).curve()
    assert strategy.curve() != WeightsStrategy((0.2, 0.4), Timing.RANDOM, frames=50, seed=4).curve()
    assert len(set(strategy.curve())) > 40
    assert torch.equal(torch.get_rng_state(), state)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="frames: expected 0 or more, got -1"):
        WeightsStrategy(frames=-1)
    with pytest.raises(ValueError, match="add_ending_frames: expected 0 or more, got -2"):
        WeightsStrategy(add_ending_frames=-2)


CURVE = WeightsStrategy((1.0, 0.0), frames=3)


def test_full_batch_repeats_the_curve_per_image() -> None:
    schedule = CURVE.schedule(images=2)
    assert schedule.weights == (1.0, 0.5, 0.0, 1.0, 0.5, 0.0)
    assert schedule.image_1 == (0, 0, 0, 1, 1, 1) and schedule.image_2 is None
    assert len(schedule) == 6


def test_shift_batches_fade_each_image_into_the_next() -> None:
    schedule = WeightsStrategy((1.0, 0.0), frames=3, method=Method.SHIFT).schedule(images=3)
    assert schedule.weights == (1.0, 0.5, 0.0, 1.0, 0.5, 0.0)
    assert schedule.image_1 == (0, 0, 0, 1, 1, 1)
    assert schedule.image_2 == (1, 1, 1, 2, 2, 2)


def test_alternate_batches_keep_even_and_odd_images_in_their_streams() -> None:
    strategy = WeightsStrategy((1.0, 0.2), Timing.CUSTOM, method=Method.ALTERNATE)
    schedule = strategy.schedule(images=4)
    assert schedule.image_1 == (0, 0, 2, 2, 2, 2)
    assert schedule.image_2 == (1, 1, 1, 1, 3, 3)
    assert schedule.weights == pytest.approx((1.0, 0.2, 0.2, 1.0, 1.0, 0.2))


@given(
    images=st.integers(1, 6),
    frames=st.integers(2, 5),
    method=st.sampled_from([Method.SHIFT, Method.ALTERNATE]),
)
def test_a_cross_fade_ends_on_the_image_that_the_next_begins_with(
    images: int, frames: int, method: Method
) -> None:
    """Whichever stream an image is in, it is fully there where its neighbours meet."""
    schedule = WeightsStrategy((1.0, 0.0), frames=frames, method=method).schedule(images)
    assert schedule.image_1 is not None and schedule.image_2 is not None
    seen = []
    for frame, weight in enumerate(schedule.weights):
        if weight in (0.0, 1.0):
            stream = schedule.image_1 if weight == 1.0 else schedule.image_2
            seen.append(stream[frame])
    steps = max(1, images - 1)
    ends = [(k, k + 1) for k in range(steps)] if images > 1 else [(0, 0)]
    assert seen == [index for pair in ends for index in pair]


def test_one_image_in_a_cross_fade_fades_into_itself() -> None:
    schedule = WeightsStrategy(frames=2, method=Method.SHIFT).schedule(images=1)
    assert schedule.image_1 == schedule.image_2 == (0, 0)


def test_the_inverse_is_one_minus_the_weight() -> None:
    schedule = WeightsStrategy((0.25, 1.5), Timing.CUSTOM).schedule()
    assert schedule.weights_invert == (0.75, -0.5)
    assert schedule.image_1 is None and schedule.image_2 is None


def test_added_frames_hold_the_ends() -> None:
    strategy = WeightsStrategy(
        frames=2, add_starting_frames=2, add_ending_frames=1, method=Method.SHIFT
    )
    schedule = strategy.schedule(images=3)
    assert schedule.weights == (1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    assert schedule.image_1 == (0, 0, 0, 0, 1, 1, 1)
    assert schedule.image_2 == (1, 1, 1, 1, 2, 2, 2)
    assert WeightsStrategy(frames=1, add_ending_frames=2).schedule().weights == (1.0, 1.0, 1.0)


def test_prompt_schedule_has_a_line_per_image() -> None:
    strategy = WeightsStrategy(frames=8, method=Method.SHIFT).with_images(3)
    text = strategy.prompt_schedule("a cat\n\n  a dog \na bird\nleft out")
    assert text == '"0": "a cat",\n"8": "a dog",\n"16": "a bird",\n'


def test_prompt_schedule_shifts_and_holds() -> None:
    strategy = WeightsStrategy(frames=4, add_starting_frames=2, add_ending_frames=3)
    text = strategy.with_images(2).prompt_schedule("one\ntwo")
    assert text == '"0": "one",\n"2": "one",\n"6": "two",\n"10": "two",\n'


def test_prompt_schedule_of_custom_timing_follows_the_list() -> None:
    strategy = WeightsStrategy((1.0, 0.5, 0.0), Timing.CUSTOM, frames=0, images=2)
    assert strategy.prompt_schedule("one\ntwo") == '"0": "one",\n"3": "two",\n'


def test_prompt_schedule_with_too_few_prompts_or_no_images() -> None:
    strategy = WeightsStrategy(frames=5)
    assert (
        strategy.with_images(3).prompt_schedule("one") == '"0": "one",\n"5": "one",\n"10": "one",\n'
    )
    assert strategy.prompt_schedule("one\ntwo") == '"0": "one",\n"5": "two",\n'
    assert strategy.prompt_schedule(" \n") == ""


def test_quotes_in_a_prompt_do_not_break_the_schedule() -> None:
    text = WeightsStrategy(frames=1, images=1).prompt_schedule('the "red" one: ü')
    assert json.loads("{" + text.strip().rstrip(",") + "}") == {"0": 'the "red" one: ü'}


# --- numbers as nodes send them

MANY = (0.5, 0.25, 1.0)
ONE_OF = {
    "int": 1,
    "bool": True,
    "float": 1.0,
    "np.float32": np.float32(1),
    "np.float64": np.float64(1),
    "np.int64": np.int64(1),
    "np.uint8": np.uint8(1),
    "np 0-d": np.array(1.0),
    "np of one": np.array([1]),
    "tensor 0-d": torch.tensor(1.0),
    "int tensor": torch.tensor(1),
    "half tensor": torch.tensor(1.0, dtype=torch.float16),
    "bfloat16 tensor": torch.tensor([1.0], dtype=torch.bfloat16),
    "tensor with a gradient": torch.tensor(1.0, requires_grad=True),
    "text": "1.0",
    "text with space": " 1 ",
    "Fraction": Fraction(1),
    "Decimal": Decimal("1.0"),
    "list": [1],
    "tuple": (1.0,),
    "list of np": [np.float32(1)],
    "list of tensors": [torch.tensor(1.0)],
    "list of text": ["1.0"],
    "generator": (one for one in (1,)),
}
MANY_OF = {
    "list": list(MANY),
    "np": np.array(MANY, dtype=np.float32),
    "tensor": torch.tensor(MANY),
    "half tensor": torch.tensor(MANY).half(),
    "list of np": [np.float32(one) for one in MANY],
    "list of tensors": [torch.tensor(one) for one in MANY],
    "text": "0.5, 0.25; 1",
    "mixed": [0.5, "0.25", np.int64(1)],
}
NONE_OF = {
    "None": None,
    "dict": {"weight": 1},
    "object": object(),
    "words": "strong",
    "list of words": ["strong"],
    "list of lists": [[1.0], [2.0, 3.0]],
    "matrix": np.ones((2, 2)),
    "tensor of two axes": torch.ones(2, 2),
    "complex": 1j,
    "class": float,
}


def identical(values: Sequence[object], expected: Sequence[float]) -> bool:
    return list(values) == list(expected) and all(type(value) is float for value in values)


@pytest.mark.parametrize("kind", ONE_OF)
def test_one_number_in_whatever_form(kind: str) -> None:
    value = ONE_OF[kind]
    value = list(value) if kind == "generator" else value
    assert identical(numbers(value, "weight"), (1.0,))
    assert identical([number(value, "weight")], (1.0,))
    assert whole_number(value, "size") == 1 and type(whole_number(value, "size")) is int


@pytest.mark.parametrize("kind", MANY_OF)
def test_many_numbers_in_whatever_form(kind: str) -> None:
    assert identical(numbers(MANY_OF[kind], "weight"), MANY)
    with pytest.raises(ValueError, match=r"size is a list of 3 numbers: expected one\."):
        number(MANY_OF[kind], "size")


@pytest.mark.parametrize("kind", NONE_OF)
def test_what_is_no_number_is_named(kind: str) -> None:
    for read in (numbers, number, whole_number):
        with pytest.raises(ValueError, match=r"^boost( is |, number 1: )") as caught:
            read(NONE_OF[kind], "boost")
        assert "expected a number" in str(caught.value) and len(str(caught.value)) < 160


def test_numbers_keep_their_size_and_sign() -> None:
    seed = 2**63 - 25
    for value in (seed, np.int64(seed), np.uint64(seed), torch.tensor(seed)):
        assert whole_number(value, "seed") == seed
    assert number(np.float64(-0.1), "x") == -0.1 and number("-1e-3", "x") == -0.001
    assert number(np.float32(0.1), "x") == float(np.float32(0.1))
    with pytest.raises(ValueError, match=r"steps is 2\.5: expected a whole number"):
        whole_number(2.5, "steps")
    for bad in (math.nan, -math.inf, np.float32("inf"), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match="opacity is .*: expected a finite number"):
            number(bad, "opacity")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("3:0.5", {3: 0.5}),
        ("0:1, 10:-0.25", {0: 1.0, 10: -0.25}),
        (" 3 : 2.5 ;\n6:1e-2,\n", {3: 2.5, 6: 0.01}),
        ("03:1", {3: 1.0}),
        ("3:1, 6:2, 3:0.5", {3: 0.5, 6: 2.0}),
        ("3:1, 03:0", {3: 0.0}),
    ],
)
def test_layer_weights(text: str, expected: dict[int, float]) -> None:
    assert parse_layer_weights(text, 11) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3:", 'entry 1: "3:" has no weight after ":". Write for example "3:0.8"'),
        ("0:1, :2", 'entry 2: ":2": expected a layer index from 0 to 10, got ""'),
        ("x:1", 'entry 1: "x:1": expected a layer index from 0 to 10, got "x"'),
        ("0:1, 5", 'entry 2: "5" has no ":"'),
        ("-1:1", 'expected a layer index from 0 to 10, got "-1"'),
        ("1.5:1", 'expected a layer index from 0 to 10, got "1.5"'),
        ("3:one", 'entry 1: "3:one": expected a number such as 0.8, got "one"'),
        ("3:1:2", 'expected a number such as 0.8, got "1:2"'),
        ("3:nan", 'got "nan"'),
        ("²:1", 'got "²"'),
        ("9" * 5000 + ":1", "expected a layer index from 0 to 10"),
    ],
)
def test_a_bad_layer_weight_is_quoted_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_layer_weights(text, 11)
    assert message in str(caught.value)


SLIDERS = ", ".join(f"{index}:{index / 10:g}" for index in range(12))  # as slider nodes send it


@pytest.mark.parametrize(
    ("text", "count", "expected", "said"),
    [
        (SLIDERS, 11, {index: index / 10 for index in range(11)}, "0 to 10. Left out: 11."),
        (SLIDERS, 16, {index: index / 10 for index in range(12)}, ""),
        ("99:1, 12:1, 3:1, 99:2", 11, {3: 1.0}, "Left out: 12, 99."),
        ("11:1", 11, {}, "so the adapter does nothing"),
        ("0:0, 11:1", 11, {0: 0.0}, "so the adapter does nothing"),
    ],
)
def test_layers_that_the_model_lacks_are_left_out(
    text: str,
    count: int,
    expected: dict[int, float],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert parse_layer_weights(text, count) == expected
    assert len(caplog.messages) == bool(said)
    assert said in caplog.text


@given(st.dictionaries(st.integers(0, 15), FINITE))
def test_layer_weights_survive_the_round_trip(weights: dict[int, float]) -> None:
    assert parse_layer_weights(format_layer_weights(weights), 16) == weights


def test_layer_weights_are_written_in_order() -> None:
    assert format_layer_weights({6: 1.0, 3: 0.25}) == "3:0.25, 6:1"


@given(st.text(alphabet="0123456789.:,;-+ex \n", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_weights, lambda value: parse_layer_weights(value, 16)):
        with suppress(ValueError):
            parse(text)
