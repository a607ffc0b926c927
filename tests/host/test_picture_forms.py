"""One door for pictures: whatever an IMAGE holds, every node sees what the image encoder sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.results import results
from support.hosts.wires import tiny_wires
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, build_model
from torch import Tensor


def levels() -> Tensor:
    """(1, 32, 48, 3) whole numbers from 0 to 255."""
    return torch.randint(0, 256, (1, 32, 48, 3), generator=torch.Generator().manual_seed(4)).float()


def with_alpha(image: Tensor, most: float) -> Tensor:
    """Transparent on the left, over colours that nobody is to see."""
    alpha = torch.full((1, 32, 48, 1), most)
    alpha[:, :, :16] = 0.0
    return torch.cat([image, alpha], dim=-1)


def over_white(image: Tensor) -> Tensor:
    image = image.clone()
    image[:, :, :16] = 1.0
    return image


GREY = levels()[..., :1]
FORMS: dict[str, tuple[Tensor, Tensor]] = {
    "RGBA": (with_alpha(levels() / 255, 1.0), over_white(levels() / 255)),
    "grey and alpha": (with_alpha(GREY / 255, 1.0), over_white(GREY.expand(-1, -1, -1, 3) / 255)),
    "grey": (GREY / 255, GREY.expand(-1, -1, -1, 3) / 255),
    "no batch axis": (levels()[0] / 255, levels() / 255),
    "uint8": (levels().to(torch.uint8), levels() / 255),
    "uint8 RGBA": (with_alpha(levels(), 255.0).to(torch.uint8), over_white(levels() / 255)),
    "int64 levels": (levels().long(), levels() / 255),
    "float levels": (levels(), levels() / 255),
    "float levels RGBA": (with_alpha(levels(), 255.0), over_white(levels() / 255)),
    "double": (levels().double() / 255, levels() / 255),
}
NODES: dict[str, tuple[str, ...]] = {
    "IPAdapterAdvanced": ("image", "image_negative"),
    "IPAdapterBatch": ("image", "image_negative"),
    "IPAdapterTiled": ("image", "image_negative"),
    "IPAdapterClipVisionEnhancer": ("image",),
    "IPAdapterStyleComposition": ("image_style", "image_composition"),
    "IPAdapterEncoder": ("image",),
    "IPAdapterFaceID": ("image",),
    "IPAdapterHook": ("image",),
    "PrepImageForClipVision": ("image",),
    "PrepImageForInsightFace": ("image",),
    "IPAdapterApply": ("image",),
    "IPAdapterNoise": ("image_optional",),
    "IPAdapterAttentionMap": ("image",),
}
NUMBERS = {
    "weight": 1.0,
    "sharpening": 0.2,
    "size": 48,
    "strength": 0.5,
    "blur": 0,
    "type": "fade",
    "opacity": 0.5,
    "enhance_tiles": 2,
    "enhance_ratio": 0.5,
}


@pytest.fixture(scope="module")
def wires(host: Any) -> dict[str, Any]:
    given = tiny_wires(host)
    recorder = host.module("ipadapter.attention.maps")
    record = recorder.AttentionRecord()
    record._sums[(range(1),)] = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(2))
    pictures = dict.fromkeys(("image_style", "image_composition", "image_optional"), given["image"])
    return {**given, **pictures, "record": record}


def numbers(host: Any, node_id: str) -> dict[str, Any]:
    names = {given.id for given in host.node(node_id).GET_SCHEMA().inputs}
    return {name: value for name, value in NUMBERS.items() if name in names}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("node_id", NODES)
def test_every_node_sees_the_same_picture(
    host: Any, wires: dict[str, Any], node_id: str, form: str
) -> None:
    odd, plain = FORMS[form]
    for name in NODES[node_id]:
        values = numbers(host, node_id)
        got = results(host, node_id, wires, {**values, name: odd})
        assert got == results(host, node_id, wires, {**values, name: plain})


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_refuses_broken_pixels(host: Any, wires: dict[str, Any], node_id: str) -> None:
    broken = levels() / 255
    broken[0, 3, 3, 1] = float("nan")
    for name in NODES[node_id]:
        with pytest.raises(ValueError, match="image 0 of 1 has NaN"):
            results(host, node_id, wires, {**numbers(host, node_id), name: broken})


@pytest.mark.parametrize("form", FORMS)
def test_faces_are_sought_in_the_same_picture(host: Any, form: str) -> None:
    """The face model is given 8-bit levels; what it finds in them is told by another test."""
    module = host.module("ipadapter.pictures.faces")
    seen: list[Any] = []

    class Detector:
        """Stands for a detector that finds nobody."""

        def detect(self, picture: Any, **_: Any) -> Any:
            seen.append(picture)
            return [], None

    class Analysis:
        det_model = Detector()

    for image in FORMS[form]:
        with pytest.raises(ValueError, match="no face found"):
            module.find_faces(Analysis(), image, 224)
    half = len(seen) // 2
    for one, other in zip(seen[:half], seen[half:], strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("form", FORMS)
def test_training_sees_the_same_picture(host: Any, form: str) -> None:
    pictures_of = host.module("ipadapter.host.training.data").pictures_of
    odd, plain = (pictures_of(image, "", "", False) for image in FORMS[form])
    assert odd.count == plain.count == 1 and torch.equal(odd.image(0), plain.image(0))


def test_face_nodes_refuse_broken_pixels(host: Any) -> None:
    state = synthetic_adapter("FaceID", "SD1.5", tiny=True, device="cpu")
    broken = torch.full((1, 16, 16, 3), float("nan"))
    with pytest.raises(ValueError, match="image: expected finite pixel values"):
        host.call(
            "IPAdapterFaceID",
            model=build_model(TINY_SD15),
            ipadapter=state,
            image=broken,
            insightface=object(),
        )
