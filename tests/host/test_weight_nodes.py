"""Weights, strategy and prompt schedule nodes in the real host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SETTINGS = {
    "weights": "1.0, 0.0",
    "timing": "linear",
    "frames": 3,
    "start_frame": 0,
    "end_frame": 9999,
    "add_starting_frames": 0,
    "add_ending_frames": 0,
    "method": "full batch",
}
SIX = ["FLOAT", "FLOAT", "INT", "IMAGE", "IMAGE", "WEIGHTS_STRATEGY"]
SIX_NAMES = ["weights", "weights_invert", "total_frames", "image_1", "image_2", "weights_strategy"]


def pictures(count: int) -> torch.Tensor:
    """Picture i is filled with i."""
    return torch.arange(count).view(count, 1, 1, 1).expand(-1, 4, 4, 3) / 10


def numbers(image: torch.Tensor) -> list[int]:
    return [round(float(picture[0, 0, 0]) * 10) for picture in image]


def test_the_interface_is_the_known_one(host: Any) -> None:
    node = host.node("IPAdapterWeights")
    inputs = node.GET_NODE_INFO_V1()["input"]
    assert list(inputs["required"]) == list(SETTINGS)
    assert list(inputs["optional"]) == ["image", "seed"]
    defaults = {name: entry[1].get("default") for name, entry in inputs["required"].items()}
    assert defaults == {**SETTINGS, "frames": 0, "method": None}
    assert inputs["required"]["timing"][1]["options"] == [
        "custom",
        "linear",
        "ease_in_out",
        "ease_in",
        "ease_out",
        "random",
    ]
    assert inputs["required"]["method"][1]["options"] == [
        "full batch",
        "shift batches",
        "alternate batches",
    ]
    assert node.RETURN_TYPES == SIX and node.RETURN_NAMES == SIX_NAMES
    other = host.node("IPAdapterWeightsFromStrategy")
    assert other.RETURN_TYPES == SIX and other.RETURN_NAMES == SIX_NAMES
    assert list(other.INPUT_TYPES()["required"]) == ["weights_strategy"]
    prompts = host.node("IPAdapterPromptScheduleFromWeightsStrategy")
    assert prompts.RETURN_NAMES == ["prompt_schedule"]
    assert list(prompts.INPUT_TYPES()["required"]) == ["weights_strategy", "prompt"]
    combine = host.node("IPAdapterCombineWeights")
    assert combine.RETURN_NAMES == ["weights", "count"] and combine.CATEGORY == "ipadapter/utils"


def test_frames_follow_the_pictures(host: Any) -> None:
    weights, inverse, total, image_1, image_2, strategy = host.call(
        "IPAdapterWeights", **{**SETTINGS, "method": "shift batches"}, image=pictures(3)
    )
    assert weights == [1.0, 0.5, 0.0] * 2 and inverse == [0.0, 0.5, 1.0] * 2 and total == 6
    assert numbers(image_1) == [0, 0, 0, 1, 1, 1] and numbers(image_2) == [1, 1, 1, 2, 2, 2]
    again = host.call("IPAdapterWeightsFromStrategy", weights_strategy=strategy, image=pictures(2))
    assert again[0] == [1.0, 0.5, 0.0] and numbers(again[3]) == [0, 0, 0]
    bare = host.call("IPAdapterWeightsFromStrategy", weights_strategy=strategy)
    assert bare[2] == 6 and bare[3] is None and bare[4] is None


def test_without_pictures_there_are_weights_alone(host: Any) -> None:
    weights, inverse, total, image_1, image_2, _ = host.call("IPAdapterWeights", **SETTINGS)
    assert (weights, inverse, total) == ([1.0, 0.5, 0.0], [0.0, 0.5, 1.0], 3)
    assert image_1 is None and image_2 is None


def test_a_whole_graph_runs(host: Any) -> None:
    outputs = host.run(
        {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 0},
            },
            "2": {
                "class_type": "IPAdapterWeights",
                "inputs": {**SETTINGS, "timing": "custom", "weights": "1\n0.5", "image": ["1", 0]},
            },
            "3": {
                "class_type": "IPAdapterPromptScheduleFromWeightsStrategy",
                "inputs": {"weights_strategy": ["2", 5], "prompt": "a cat\na dog"},
            },
            "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
            "5": {
                "class_type": "IPAdapterCombineWeights",
                "inputs": {"weights_1": ["2", 0], "weights_2": ["2", 1]},
            },
            "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}},
            "7": {"class_type": "PreviewAny", "inputs": {"source": ["5", 1]}},
            "8": {"class_type": "PreviewImage", "inputs": {"images": ["2", 3]}},
        }
    )
    assert outputs["4"]["text"] == ['"0": "a cat",\n"2": "a dog",\n']
    combined = outputs["6"]["text"][0].replace("[", "").replace("]", "").split(",")
    assert [float(item) for item in combined] == [1.0, 0.5, 1.0, 0.5, 0.0, 0.5, 0.0, 0.5]
    assert outputs["7"]["text"] == ["8"]
    assert len(outputs["8"]["images"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "1.0, x"}, 'number 2: expected a number such as 0.8, got "x"'),
        ({"timing": "custom", "weights": ""}, "custom timing needs at least one number"),
        ({"timing": "ease"}, "timing"),
    ],
)
def test_the_user_reads_what_is_wrong(host: Any, change: dict[str, str], message: str) -> None:
    from support.hosts.process import GraphError

    graph = {
        "1": {"class_type": "IPAdapterWeights", "inputs": {**SETTINGS, **change}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises((GraphError, ValueError)) as caught:
        host.run(graph)
    assert message in str(caught.value)


def test_a_foreign_strategy_is_refused(host: Any) -> None:
    with pytest.raises(ValueError, match="weights_strategy input received a dict"):
        host.call("IPAdapterWeightsFromStrategy", weights_strategy={})
