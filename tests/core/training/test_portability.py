"""What is said of other programs is what diffusers really does."""

from __future__ import annotations

import pytest
from support.models.adapters import shapes_of, synthetic_adapter
from support.models.diffusers_layouts import projector_by_diffusers

from ipadapter.adapters.families import Family
from ipadapter.adapters.spec import identify
from ipadapter.training.portability import portability_note

CASES = [
    *((Family.STANDARD, "SD1.5", tokens, 4) for tokens in (1, 4, 8, 16)),
    *((Family.PLUS, "SDXL", tokens, depth) for tokens in (4, 16, 32) for depth in (2, 4, 6)),
    *((Family.FACEID, "SD1.5", tokens, 4) for tokens in (4, 8)),
    *((Family.FACEID_PLUS_V2, "SD1.5", tokens, depth) for tokens in (4, 6) for depth in (2, 4)),
    (Family.FULL_FACE, "SD1.5", 257, 4),
    (Family.PORTRAIT, "SDXL", 16, 4),
    (Family.PORTRAIT_UNNORM, "SDXL", 16, 4),
    (Family.KOLORS_PLUS, "Kolors", 16, 4),
    (Family.KOLORS_FACEID_PLUS, "Kolors", 6, 4),
]


@pytest.mark.parametrize(("family", "base", "tokens", "depth"), CASES)
def test_the_note_is_diffusers_own_answer(
    family: Family, base: str, tokens: int, depth: int
) -> None:
    nested = synthetic_adapter(
        family, base, tiny=True, device="cpu", num_tokens=tokens, depth=depth, lora=True
    )
    projector = shapes_of(nested["image_proj"])
    spec = identify(projector, shapes_of(nested["ip_adapter"]), "x")
    note = portability_note(spec.family, spec.num_tokens, projector)
    if note:
        assert "diffusers cannot read it" in note
        with pytest.raises((RuntimeError, KeyError)):
            projector_by_diffusers(nested["image_proj"])
    else:
        assert projector_by_diffusers(nested["image_proj"])
