"""Prompts of other years through the host's own checks: values of old, settings left out, links to
inputs that a node does not have; and node classes as callers of the V1 kind read them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from support.hosts.process import GraphError, host_nodes
from support.hosts.wires import same, tiny_wires
from support.references.interface import INTERFACE, defaults

OLD_TYPES = {
    "style transfer (SDXL)": "style transfer",
    "style transfer (SDXL only)": "style transfer",
    "composition (SDXL)": "composition",
    "original": "linear",
}
# Settings that API prompts of 2024 leave out, by node.
LATER = {
    "IPAdapter": ["weight_type"],
    "IPAdapterAdvanced": ["combine_embeds", "embeds_scaling"],
    "IPAdapterBatch": ["embeds_scaling", "encode_batch_size"],
    "IPAdapterClipVisionEnhancerBatch": ["encode_batch_size", "embeds_scaling"],
    "IPAdapterEmbeds": ["embeds_scaling"],
    "IPAdapterFaceID": ["combine_embeds", "embeds_scaling", "weight_faceidv2"],
    "IPAdapterFromParams": ["embeds_scaling", "combine_embeds"],
    "IPAdapterInsightFaceLoader": ["model_name"],
    "IPAdapterMS": ["combine_embeds", "embeds_scaling", "layer_weights"],
    "IPAdapterStyleComposition": ["expand_style", "embeds_scaling"],
    "IPAdapterTiledBatch": ["encode_batch_size", "sharpening"],
    "IPAdapterWeights": ["add_starting_frames", "add_ending_frames", "method"],
}


@pytest.fixture(scope="module")
def given(host: Any) -> dict[str, Any]:
    return tiny_wires(host)


def checked(host: Any, node_id: str, **inputs: Any) -> str:
    """What the host's validation says of a node whose sockets are all linked to it; "" if fine."""
    info = host.node(node_id).GET_NODE_INFO_V1()["input"]
    values = {name: value for name, value in defaults(node_id).items() if value is not None}
    sockets = {
        name: ["1", 0]
        for name, (kind, *_) in info["required"].items()
        if name not in values and kind != "COMBO"
    }
    given = {**sockets, **values, **inputs}
    given = {name: value for name, value in given.items() if value is not None}
    graph = {
        "1": {"class_type": "TestAnything", "inputs": {}},
        "2": {"class_type": node_id, "inputs": given},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    host_nodes().NODE_CLASS_MAPPINGS["TestAnything"] = Anything
    try:
        host.run(graph)
    except ValueError as error:
        return str(error)
    except GraphError:  # it was let through, and then had no MODEL
        return ""
    return ""


class Anything:
    """A node whose output fits every socket and is nothing."""

    RETURN_TYPES = ("*",)
    FUNCTION = "nothing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def nothing(self) -> tuple[None]:
        return (None,)


class TestOldValues:
    @pytest.mark.parametrize("old", OLD_TYPES)
    def test_they_mean_todays(self, host: Any, given: dict[str, Any], old: str) -> None:
        (model,) = host.call("IPAdapterAdvanced", **given, weight_type=old)
        (wanted,) = host.call("IPAdapterAdvanced", **given, weight_type=OLD_TYPES[old])
        assert same(model, wanted)

    def test_channel_penalty_is_a_scaling(self, host: Any, given: dict[str, Any]) -> None:
        inputs = {**given, "weight": 0.6}
        (model,) = host.call("IPAdapterAdvanced", **inputs, weight_type="channel penalty")
        penalty = "K+mean(V) w/ C penalty"
        (wanted,) = host.call("IPAdapterAdvanced", **inputs, embeds_scaling=penalty)
        assert same(model, wanted)
        # A scaling that somebody chose beside it stays.
        (chosen,) = host.call(
            "IPAdapterAdvanced", **inputs, weight_type="channel penalty", embeds_scaling="K+V"
        )
        (wanted,) = host.call("IPAdapterAdvanced", **inputs, embeds_scaling="K+V")
        assert same(chosen, wanted)

    @pytest.mark.parametrize(
        "node_id",
        sorted(
            node_id
            for node_id, info in INTERFACE.items()
            if any(
                row["name"] == "weight_type" and "linear" in row["values"] for row in info["inputs"]
            )
        ),
    )
    def test_the_host_lets_them_through(self, host: Any, node_id: str) -> None:
        for old in (*OLD_TYPES, "channel penalty"):
            assert checked(host, node_id, weight_type=old) == ""
        assert "not in" in checked(host, node_id, weight_type="strong")

    def test_the_simple_node(self, host: Any, given: dict[str, Any]) -> None:
        assert checked(host, "IPAdapter", weight_type="style transfer (SDXL only)") == ""
        pipeline = host.module("ipadapter.apply.wire").LoadedAdapter(
            given["ipadapter"], given["clip_vision"]
        )
        inputs = {"model": given["model"], "ipadapter": pipeline, "image": given["image"]}
        (model,) = host.call("IPAdapter", **inputs, weight_type="style transfer (SDXL only)")
        (wanted,) = host.call("IPAdapter", **inputs, weight_type="style transfer")
        assert same(model, wanted)

    def test_regions(self, host: Any, given: dict[str, Any]) -> None:
        wires = {name: given[name] for name in ("model", "ipadapter", "clip_vision")}

        def applied(kind: str) -> Any:
            settings = {"image_weight": 1.0, "prompt_weight": 1.0, "start_at": 0.0, "end_at": 1.0}
            region = host.call(
                "IPAdapterRegionalConditioning",
                image=given["image"],
                weight_type=kind,
                **settings,
            )[0]
            return host.call("IPAdapterFromParams", **wires, ipadapter_params=region)[0]

        assert same(applied("composition (SDXL)"), applied("composition"))

    def test_interpolation_in_small_letters(self, host: Any, given: dict[str, Any]) -> None:
        inputs = {"image": given["image"], "crop_position": "top", "sharpening": 0.0}
        (small,) = host.call("PrepImageForClipVision", interpolation="lanczos", **inputs)
        (large,) = host.call("PrepImageForClipVision", interpolation="LANCZOS", **inputs)
        assert torch.equal(small, large)
        assert checked(host, "PrepImageForClipVision", interpolation="lanczos") == ""


class TestLaterSettings:
    @pytest.mark.parametrize("node_id", LATER)
    def test_they_may_be_left_out(self, host: Any, node_id: str) -> None:
        assert checked(host, node_id, **dict.fromkeys(LATER[node_id])) == ""

    @pytest.mark.parametrize("node_id", LATER)
    def test_the_editor_still_sees_them_in_place(self, host: Any, node_id: str) -> None:
        shown = host.node(node_id).GET_NODE_INFO_V1()["input"]
        assert set(LATER[node_id]) <= shown["required"].keys()

    def test_what_is_left_out_is_a_new_nodes(self, host: Any, given: dict[str, Any]) -> None:
        (model,) = host.call("IPAdapterStyleComposition", **pair(given))
        (wanted,) = host.call(
            "IPAdapterStyleComposition",
            **pair(given),
            combine_embeds="average",
            expand_style=False,
            weight_style=1.0,
        )
        assert same(model, wanted)

    def test_frames(self, host: Any) -> None:
        curve = {"weights": "1.0, 0.0", "timing": "linear", "frames": 3}
        curve |= {"start_frame": 0, "end_frame": 9999}
        outputs = host.call("IPAdapterWeights", **curve)
        assert outputs[0] == [1.0, 0.5, 0.0]

    @pytest.mark.parametrize(
        ("node_id", "name"),
        [
            ("IPAdapterAdvanced", "weight"),
            ("IPAdapterAdvanced", "image"),
            ("IPAdapterModelLoader", "ipadapter_file"),
            ("IPAdapterUnifiedLoader", "preset"),
            ("IPAdapterCombineEmbeds", "method"),
        ],
    )
    def test_what_a_node_always_had_is_required(self, host: Any, node_id: str, name: str) -> None:
        assert "Required input is missing" in checked(host, node_id, **{name: None})


def pair(given: dict[str, Any]) -> dict[str, Any]:
    wires = {name: given[name] for name in ("model", "ipadapter", "clip_vision")}
    return {**wires, "image_style": given["image"], "image_composition": given["image"].flip(1)}


class TestUnknownLinks:
    def test_they_are_ignored_with_one_line(
        self, host: Any, given: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "ipadapter")
        (model,) = host.call("IPAdapterAdvanced", **given, noise_mask=torch.ones(1), other=None)
        said = [text for text in caplog.messages if "no such input" in text]
        assert said == [
            "IPAdapterAdvanced ignores what is linked to noise_mask, other: it has no such input."
        ]
        (wanted,) = host.call("IPAdapterAdvanced", **given)
        assert same(model, wanted)

    def test_on_every_node(self, host: Any) -> None:
        """None fails for it; without their own inputs they fail otherwise, or run."""
        for node_id in sorted(host.node_ids):
            said = ""
            try:
                host.call(node_id, quite_unknown=1)
            except Exception as error:
                said = str(error)
            assert "quite_unknown" not in said, node_id

    def test_files_are_still_stamped(self, host: Any) -> None:
        """A host that cannot tell whether a file changed loads it with every prompt."""
        name = "old_stamp.safetensors"
        (host.models("ipadapter") / name).write_bytes(b"1234")
        loader = host.node("IPAdapterModelLoader")
        stamp = loader.fingerprint_inputs(ipadapter_file=name)
        assert loader.fingerprint_inputs(ipadapter_file=name, quite_unknown=None) == stamp


class TestCallersOfV1:
    def test_regional_nodes_of_another_pack(self, host: Any) -> None:
        """They offer the values of ours, which the host then checks against their own node's."""
        values = host.node("IPAdapterAdvanced")().INPUT_TYPES()["required"]["weight_type"][0]
        (expected,) = (
            row["values"]
            for row in INTERFACE["IPAdapterAdvanced"]["inputs"]
            if row["name"] == "weight_type"
        )
        assert isinstance(values, list)
        assert values == expected
        assert json.loads(json.dumps(values)) == expected

    def test_every_list_of_every_node(self, host: Any) -> None:
        for node_id in sorted(host.node_ids):
            node = host.node(node_id)
            shown = node.GET_NODE_INFO_V1()["input"]
            read = node().INPUT_TYPES()
            for group in ("required", "optional"):
                for name, (kind, options) in shown.get(group, {}).items():
                    found = read[group][name][0]
                    assert found == (options["options"] if kind == "COMBO" else kind), node_id
                    assert isinstance(found, list) == (kind == "COMBO")

    def test_lists_of_every_node_take_links_from_values_of_other_nodes(self, host: Any) -> None:
        from comfy_execution.validation import validate_node_input

        values = host.node("IPAdapterAdvanced").INPUT_TYPES()["required"]["weight_type"][0]
        assert validate_node_input("COMBO", values)
        assert validate_node_input("STRING,COMBO", values)
        assert validate_node_input(["a", "b"], values)
        assert not validate_node_input("STRING", values)
