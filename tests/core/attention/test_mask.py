"""Masks: what is refused, and how they land on a block's grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references.sampler import on_grid
from torch import Tensor

from ipadapter.attention.mask import acting_mask, block_grid, check_mask, mask_rows
from ipadapter.attention.rows import Crop


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 8), (1, 6, 8)),
        ((3, 6, 8), (3, 6, 8)),
        ((3, 1, 6, 8), (3, 6, 8)),
        ((3, 6, 8, 1), (3, 6, 8)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_masks_take_one_form(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert check_mask(torch.rand(shape)).shape == expected


@pytest.mark.parametrize("shape", [(8,), (2, 6, 8, 3), (1, 1, 1, 6, 8), (0, 6, 8), (1, 0, 8), ()])
def test_other_shapes_are_refused_with_advice(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attn_mask has shape .*expected \(masks, height, width"):
        check_mask(torch.ones(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    mask = torch.ones(1, 4, 4)
    mask[0, 2, 2] = bad
    with pytest.raises(ValueError, match="attn_mask holds NaN or infinite"):
        check_mask(mask)


def test_values_outside_are_clamped_and_the_mask_given_stays() -> None:
    given_mask = torch.tensor([[-1.0, 0.5, 2.0]])
    assert check_mask(given_mask).tolist() == [[[0.0, 0.5, 1.0]]]
    assert given_mask.tolist() == [[-1.0, 0.5, 2.0]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64])
def test_other_dtypes_become_float(dtype: torch.dtype) -> None:
    mask = check_mask(torch.ones(2, 4, 4, dtype=dtype))
    assert mask.dtype == torch.float32 and torch.equal(mask, torch.ones(2, 4, 4))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(1, 17))
@settings(max_examples=40, deadline=None)
def test_rows_have_one_value_per_position(h: int, w: int, height: int, width: int) -> None:
    rows = mask_rows(torch.rand(1, h, w), height, width)
    assert rows.shape == (1, height * width, 1)
    assert float(rows.min()) >= 0.0 and float(rows.max()) <= 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size", [(17, 33), (64, 64), (5, 3)])
def test_uniform_masks_stay_exact(value: float, size: tuple[int, int]) -> None:
    rows = mask_rows(torch.full((1, *size), value), 8, 12)
    assert torch.equal(rows, torch.full((1, 96, 1), value))


def _grid(rows: Tensor, height: int, width: int) -> Tensor:
    return rows.reshape(height, width)


def test_a_straight_edge_stays_hard_where_the_grid_divides_it() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, 16:] = 1.0
    expected = torch.zeros(8, 8)
    expected[:4, 2:] = 1.0
    assert torch.equal(_grid(mask_rows(mask, 8, 8), 8, 8), expected)


def test_a_soft_edge_stays_soft() -> None:
    mask = torch.linspace(0, 1, 64).expand(1, 64, 64)
    rows = _grid(mask_rows(mask, 8, 8), 8, 8)
    assert torch.equal(rows[0], rows[7])
    steps = rows[0].diff()
    assert (steps > 0).all() and torch.allclose(steps, steps[0].expand(7), atol=1e-5)
    assert abs(float(rows[0].mean()) - 0.5) < 1e-5


@pytest.mark.parametrize("grid", [16, 32, 64, 128])
@pytest.mark.parametrize("width", [1, 2, 8, 16, 40])
def test_a_thin_line_counts_for_its_area(grid: int, width: int) -> None:
    """Wherever it lies: a line of 8 of 1024 pixels is a quarter of one of 32 columns."""
    for left in range(0, 1024 - width, 37):
        mask = torch.zeros(1, 4, 1024)
        mask[..., left : left + width] = 1.0
        (row,) = _grid(mask_rows(mask, 1, grid), 1, grid)
        assert float(row.sum()) == pytest.approx(width * grid / 1024, abs=1e-5)
        assert int(row.argmax()) in range(left * grid // 1024, (left + width) * grid // 1024 + 1)


sides = st.integers(1, 60)


@given(sides, sides, sides, sides, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_cell_has_the_mean_over_its_area(h: int, w: int, rows: int, cols: int, seed: int) -> None:
    mask = torch.rand(1, h, w, generator=torch.Generator().manual_seed(seed))
    made = _grid(mask_rows(mask, rows, cols), rows, cols)
    assert (made - on_grid(mask[0], (rows, cols))).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), (32, 32)), ((5, 9), (16, 16)), ((1, 1), (4, 4))]
)
def test_a_mask_smaller_than_the_grid_is_interpolated(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(2))
    expected = torch.nn.functional.interpolate(mask[:, None], size=grid, mode="bilinear")
    made = mask_rows(mask, *grid).reshape(2, 1, *grid)
    assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("part", [(0, 24, 8, 40), (8, 16, 0, 48), (40, 48, 16, 24)])
@pytest.mark.parametrize("grid", [(2, 2), (4, 8), (5, 3)])
def test_a_part_of_the_picture_is_the_mask_cut_to_it(
    part: tuple[int, int, int, int], grid: tuple[int, int]
) -> None:
    mask = torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(2))
    top, bottom, left, right = part
    crop = Crop(top / 48, left / 48, bottom / 48, right / 48)
    made = mask_rows(mask, *grid, (0,), (crop,))
    assert torch.allclose(made, mask_rows(mask[:, top:bottom, left:right], *grid), atol=1e-6)


@given(sides, sides, st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_a_mask_and_its_complement_make_one_whole(h: int, w: int, rows: int, cols: int) -> None:
    mask = (torch.rand(1, h, w, generator=torch.Generator().manual_seed(h)) > 0.5).float()
    whole = mask_rows(mask, rows, cols) + mask_rows(1 - mask, rows, cols)
    assert torch.allclose(whole, torch.ones_like(whole), atol=1e-6)


@pytest.mark.parametrize(
    "mask", [torch.zeros(1, 64, 64), torch.zeros(64, 64), torch.zeros(3, 4, 4)]
)
def test_a_black_mask_is_said_once(mask: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """Load Image gives one for every picture without transparency."""
    assert not acting_mask(mask).any()
    (record,) = caplog.records
    assert record.getMessage().startswith("attn_mask is all black, so this image prompt does noth")


def test_masks_of_some_frames_may_be_black(caplog: pytest.LogCaptureFixture) -> None:
    acting_mask(torch.cat([torch.zeros(2, 4, 4), torch.ones(1, 4, 4)]))
    assert not caplog.records


def test_height_and_width_are_not_swapped() -> None:
    mask = torch.zeros(1, 20, 60)
    mask[:, :10] = 1.0
    rows = _grid(mask_rows(mask, 4, 12), 4, 12)
    assert rows[:2].all() and not rows[2:].any()


def test_a_grid_comes_from_the_host_or_from_the_latent() -> None:
    assert block_grid(15, {"activations_shape": (2, 320, 3, 5)}) == (3, 5)
    odd = {"original_shape": (1, 4, 33, 32)}
    assert block_grid(33 * 32, odd) == (33, 32)
    assert block_grid(17 * 16, odd) == (17, 16)
    assert block_grid(9 * 8, odd) == (9, 8)


def test_a_grid_of_the_host_that_does_not_fit_is_not_believed() -> None:
    extra = {"activations_shape": (2, 320, 4, 4), "original_shape": (1, 4, 6, 10)}
    assert block_grid(15, extra) == (3, 5)


@pytest.mark.parametrize("extra", [{}, {"original_shape": (1, 4, 8, 8)}])
def test_an_unknown_grid_is_an_error_that_says_what_to_do(extra: dict) -> None:
    with pytest.raises(ValueError, match=r"cannot be placed: a block has 15 positions.*Remove the"):
        block_grid(15, extra)
