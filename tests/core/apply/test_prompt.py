"""From what the encoders gave to a prompt: each latent gets what it would get alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models.adapters import synthetic_adapter
from torch import Tensor

from ipadapter.adapters.adapter import Adapter
from ipadapter.adapters.checkpoint import checkpoint_from_dict
from ipadapter.adapters.prompt import ImagePrompt
from ipadapter.apply.prompt import Seen, image_prompt
from ipadapter.apply.request import Request
from ipadapter.pictures.embeds import ImageEmbeds


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapter_of(family: str) -> Adapter:
    state = synthetic_adapter(family, "SD1.5", tiny=True, device="cpu")
    return Adapter.from_checkpoint(checkpoint_from_dict(state, "faceid-plusv2.bin"))


def faces(adapter: Adapter, count: int, seed: int = 0) -> ImageEmbeds:
    source = adapter.spec.embed_source
    hidden = random(count, 17, adapter.spec.embed_dim, seed=seed)
    return ImageEmbeds(hidden, source, torch.nn.functional.normalize(random(count, 512, seed=seed)))


def prompt(adapter: Adapter, image: ImageEmbeds, **given: Any) -> ImagePrompt:
    seen = Seen(image, faces(adapter, 1, seed=9))
    return image_prompt(adapter, seen, Request(None, adapter, **given))


def alone(adapter: Adapter, image: ImageEmbeds, number: int, scale: float) -> Tensor:
    """The projector on one face: v2 adds `scale` times what its perceiver read."""
    face, hidden = image.face[number : number + 1], image.features[number : number + 1]  # type: ignore[index]
    plus, plain = (adapter.projector(face, hidden, s, True) for s in (1.0, 0.0))
    return plain + scale * (plus - plain)


WEIGHTS = (0.25, 1.0, -0.5)


@pytest.mark.parametrize("pictures", [1, 2, 3, 5])
@pytest.mark.parametrize("explicit", [False, True], ids=["twice the weight", "weight_faceidv2"])
def test_a_faces_share_is_that_of_its_latent(pictures: int, explicit: bool) -> None:
    adapter = adapter_of("FaceID Plus v2")
    image = faces(adapter, pictures)
    given = {"weight_faceidv2": WEIGHTS} if explicit else {"weight": WEIGHTS}
    made = prompt(adapter, image, per_item=True, **given).cond
    assert len(made) == max(pictures, 3)
    for latent, tokens in enumerate(made):
        scale = WEIGHTS[min(latent, 2)] * (1 if explicit else 2)
        expected = alone(adapter, image, min(latent, pictures - 1), scale)
        assert torch.allclose(tokens, expected[0], atol=1e-5)


def test_one_prompt_for_all_latents_has_a_share_per_latent_too() -> None:
    adapter = adapter_of("FaceID Plus v2")
    image = faces(adapter, 2)
    made = prompt(adapter, image, weight=WEIGHTS).cond
    for latent, tokens in enumerate(made):
        parts = [alone(adapter, image, number, 2 * WEIGHTS[latent])[0] for number in (0, 1)]
        assert torch.allclose(tokens, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize("weight", [0.7, [0.7, 0.7], torch.tensor(0.7)])
def test_weights_that_are_alike_make_one_prompt(weight: Any) -> None:
    adapter = adapter_of("FaceID Plus v2")
    assert len(prompt(adapter, faces(adapter, 2), weight=weight).cond) == 1


def test_other_families_make_one_prompt_whatever_the_weights() -> None:
    adapter = adapter_of("FaceID Plus")
    plain = Adapter(adapter.spec.with_face_version("v1"), adapter.checkpoint)  # type: ignore[arg-type]
    assert len(prompt(plain, faces(plain, 2), weight=WEIGHTS).cond) == 1
