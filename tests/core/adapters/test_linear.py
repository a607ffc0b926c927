"""Products with stored weights, piece by piece."""

from __future__ import annotations

import pytest
import torch

from ipadapter.adapters import linear as streamed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_a_stored_layer_computes_in_single_precision(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(streamed._PIECE, "cpu", 3 * 7)  # three outputs at a time, of eight
    layer, plain = streamed.Linear(7, 8, bias=bias), torch.nn.Linear(7, 8, bias=bias)
    layer.to(dtype).requires_grad_(False)
    plain.load_state_dict({key: value.float() for key, value in layer.state_dict().items()})
    rows = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    assert layer(rows).dtype == torch.float32
    assert (layer(rows) - plain(rows)).abs().max() < 1e-6


def test_pieces_are_few_numbers_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streamed._PIECE, "cpu", 20)
    weight = torch.randn(11, 7, generator=torch.Generator().manual_seed(1)).half()
    parts = list(streamed.pieces(weight, "cpu"))
    assert max(piece.numel() for _, piece in parts) <= 20
    assert torch.equal(torch.cat([piece for _, piece in parts]), weight.float())
    assert torch.equal(torch.cat([weight[part] for part, _ in parts]), weight)


def test_a_long_row_is_a_piece_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(streamed._PIECE, "cpu", 5)
    assert len(list(streamed.pieces(torch.zeros(4, 7), "cpu"))) == 4
