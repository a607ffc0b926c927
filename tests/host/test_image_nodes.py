"""Prep and noise nodes in the real host: their interface, and what they do in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SAVE = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "pixels"}}
WIDE = {
    "class_type": "EmptyImage",
    "inputs": {"width": 96, "height": 32, "batch_size": 2, "color": 0x8040FF},
}


def saved(host: Any, graph: dict[str, Any]) -> list[Any]:
    """Sizes and centre pixels of the pictures that node 3 saves."""
    from PIL import Image

    outputs = host.run({"1": WIDE, **graph, "3": SAVE})
    pictures = [Image.open(host.base / "output" / f["filename"]) for f in outputs["3"]["images"]]
    return [(picture.size, picture.getpixel((112, 112))) for picture in pictures]


def interface(host: Any, node_id: str) -> list[tuple]:
    """(name, type or options, default, min, max, step) of every input, required ones first."""
    inputs = host.node(node_id).GET_NODE_INFO_V1()["input"]
    rows = []
    for group in ("required", "optional"):
        for name, (kind, *options) in inputs.get(group, {}).items():
            option = options[0] if options else {}
            values = option.get("options", kind) if kind == "COMBO" else kind
            limits = (option.get(key) for key in ("default", "min", "max", "step"))
            rows.append((name, values, *limits))
    return rows


def test_prep_has_the_known_interface(host: Any) -> None:
    assert interface(host, "PrepImageForClipVision") == [
        ("image", "IMAGE", None, None, None, None),
        (
            "interpolation",
            ["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"],
            *[None] * 4,
        ),
        ("crop_position", ["top", "bottom", "left", "right", "center", "pad"], *[None] * 4),
        ("sharpening", "FLOAT", 0.0, 0.0, 1.0, 0.05),
        ("size", "INT", 224, 32, 2048, None),
    ]
    node = host.node("PrepImageForClipVision")
    assert node.RETURN_TYPES == ["IMAGE"] and node.CATEGORY == "ipadapter/utils"


def test_noise_has_the_known_interface(host: Any) -> None:
    assert interface(host, "IPAdapterNoise") == [
        ("type", ["fade", "dissolve", "gaussian", "shuffle"], *[None] * 4),
        ("strength", "FLOAT", 1.0, 0.0, 1.0, 0.05),
        ("blur", "INT", 0, 0, 32, None),
        ("image_optional", "IMAGE", None, None, None, None),
        ("seed", "INT", -1, -1, 2**63 - 1, None),
    ]
    options = host.node("IPAdapterNoise").INPUT_TYPES()["optional"]["seed"][1]
    assert options["control_after_generate"] is False


@pytest.mark.parametrize("position", ["top", "bottom", "left", "right", "center", "pad"])
def test_prep_runs_in_a_graph_without_its_new_input(host: Any, position: str) -> None:
    prep = {
        "class_type": "PrepImageForClipVision",
        "inputs": {
            "image": ["1", 0],
            "interpolation": "LANCZOS",
            "crop_position": position,
            "sharpening": 0.15,
        },
    }
    assert saved(host, {"2": prep}) == [((224, 224), (0x80, 0x40, 0xFF))] * 2


def test_noise_runs_in_a_graph_and_repeats(host: Any) -> None:
    noise = {
        "class_type": "IPAdapterNoise",
        "inputs": {"type": "dissolve", "strength": 0.5, "blur": 2, "image_optional": ["1", 0]},
    }
    assert [size for size, _ in saved(host, {"2": noise})] == [(224, 224)] * 2
    image = torch.rand(1, 64, 64, 3)
    settings = {"type": "shuffle", "strength": 0.4, "blur": 0, "image_optional": image}
    (first,) = host.call("IPAdapterNoise", **settings)
    assert torch.equal(host.call("IPAdapterNoise", **settings)[0], first)
    assert not torch.equal(host.call("IPAdapterNoise", seed=5, **settings)[0], first)


def test_an_unknown_choice_is_explained(host: Any) -> None:
    with pytest.raises(ValueError, match="crop_position is 'middle': expected one of 'top'"):
        host.call(
            "PrepImageForClipVision",
            image=torch.zeros(1, 8, 8, 3),
            interpolation="BOX",
            crop_position="middle",
            sharpening=0.0,
        )
