"""Recent results: found by content, bounded in bytes."""

from __future__ import annotations

import torch

from ipadapter.adapters.cache import TensorCache, digest


def test_the_digest_is_of_type_shape_and_content() -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    same = torch.arange(6, dtype=torch.float32)
    others = [tensor.half(), tensor.view(2, 3), tensor + 1, tensor.view(3, 2).T]
    assert digest(tensor) == digest(same)
    assert len({digest(other) for other in [tensor, *others]}) == 5
    assert digest(tensor, None) != digest(None, tensor)


def test_an_entry_is_made_once_and_the_oldest_goes_first() -> None:
    made: list[int] = []

    def make(number: int) -> list[torch.Tensor]:
        made.append(number)
        return [torch.zeros(10)]

    recent = TensorCache(limit=100)
    for number in (1, 2, 1, 3, 1, 2):
        recent.get(number, lambda number=number: make(number))
    assert made == [1, 2, 3, 2]
    assert recent.nbytes() <= 100


def test_what_is_too_large_is_not_kept() -> None:
    recent = TensorCache(limit=100)
    (large,) = recent.get("large", lambda: [torch.zeros(100)])
    assert large.numel() == 100 and recent.nbytes() == 0
