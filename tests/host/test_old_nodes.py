"""Nodes of 2023: as workflow files and programs of that time have them, with today's results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.hosts.process import GraphError
from support.hosts.wires import same, tiny_wires
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, build_model
from support.models.vision import tiny_clip_vision

FLOAT, TYPES = "FLOAT", ["original", "linear", "channel penalty"]
# Widgets in the order in which files of the time keep their values, with what they begin with, and
# sockets. Read from published workflow files.
SPAN = {"start_at": (FLOAT, 0.0), "end_at": (FLOAT, 1.0)}
NOISE, KIND = {"noise": (FLOAT, 0.0)}, {"weight_type": (TYPES, "original")}
WEIGHT, UNFOLD = {"weight": (FLOAT, 1.0)}, {"unfold_batch": ("BOOLEAN", False)}
OLD: dict[str, tuple[dict[str, Any], set[str], list[str]]] = {
    "IPAdapterApply": (
        {**WEIGHT, **NOISE, **KIND, **SPAN, **UNFOLD},
        {"ipadapter", "clip_vision", "image", "model", "attn_mask", "insightface"},
        ["MODEL"],
    ),
    "IPAdapterApplyFaceID": (
        {
            **{**WEIGHT, **NOISE, **KIND, **SPAN},
            "faceid_v2": ("BOOLEAN", False),
            "weight_v2": (FLOAT, 1.0),
            **UNFOLD,
        },
        {"ipadapter", "clip_vision", "insightface", "image", "model", "attn_mask"},
        ["MODEL"],
    ),
    "IPAdapterApplyEncoded": (
        {**WEIGHT, **KIND, **SPAN, **UNFOLD},
        {"ipadapter", "embeds", "model", "attn_mask"},
        ["MODEL"],
    ),
    "IPAdapterBatchEmbeds": ({}, {"embed1", "embed2"}, ["EMBEDS"]),
    "InsightFaceLoader": (
        {"provider": (["CPU", "CUDA", "ROCM"], "CPU")},
        set(),
        ["INSIGHTFACE"],
    ),
    "PrepImageForInsightFace": (
        {
            "crop_position": (["center", "top", "bottom", "left", "right"], "center"),
            "sharpening": (FLOAT, 0.0),
            "pad_around": ("BOOLEAN", True),
        },
        {"image"},
        ["IMAGE"],
    ),
}
REQUIRED = {"model", "ipadapter", "image", "embeds", "embed1", "embed2"}
# The embeds scaling of today that each weight type of 2023 is.
SCALINGS = {
    "original": "V only",
    "linear": "K+V",
    "channel penalty": "K+mean(V) w/ C penalty",
}


def served(host: Any, node_id: str) -> dict[str, Any]:
    """What the editor is told of a node."""
    return host.node(node_id).GET_NODE_INFO_V1()


@pytest.mark.parametrize("node_id", OLD)
class TestInterface:
    def test_inputs(self, host: Any, node_id: str) -> None:
        widgets, sockets, outputs = OLD[node_id]
        groups = served(host, node_id)["input"]
        declared = {**groups["required"], **groups.get("optional", {})}
        found = {}
        for name, (kind, options) in declared.items():
            if name not in sockets:
                values = options["options"] if kind == "COMBO" else kind
                default = options.get("default", values[0] if kind == "COMBO" else None)
                found[name] = (values, default)
        assert list(found.items()) == list(widgets.items())
        assert declared.keys() - found.keys() == sockets
        assert groups["required"].keys() == sockets & REQUIRED
        assert served(host, node_id)["output"] == outputs

    def test_it_is_hidden_and_names_its_successor(self, host: Any, node_id: str) -> None:
        info = served(host, node_id)
        assert info["deprecated"]
        names = {served(host, name)["display_name"] for name in host.node_ids}
        assert any(name in info["description"] for name in names - {info["display_name"]})


@pytest.fixture(scope="module")
def given(host: Any) -> dict[str, Any]:
    return tiny_wires(host, pictures=2)


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    """The left half."""
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1
    return mask


def advanced(host: Any, node_id: str = "IPAdapterAdvanced", **inputs: Any) -> Any:
    return host.call(node_id, **inputs)[0]


class TestApply:
    def test_settings_left_out_are_those_of_a_new_node(self, host: Any, given: Any) -> None:
        (model,) = host.call("IPAdapterApply", **given)
        assert same(model, advanced(host, **given))
        assert not same(model, given["model"])

    @pytest.mark.parametrize("kind", SCALINGS)
    def test_weight_type_is_todays_scaling(self, host: Any, given: Any, kind: str) -> None:
        settings: Any = {"weight": 0.6, "start_at": 0.0, "end_at": 0.9}
        (model,) = host.call("IPAdapterApply", **given, **settings, weight_type=kind)
        wanted = advanced(host, **given, **settings, embeds_scaling=SCALINGS[kind])
        assert same(model, wanted)

    def test_the_mask_confines_it(self, host: Any, given: Any, mask: torch.Tensor) -> None:
        """The replacement that hosts made of this node lost the mask."""
        (model,) = host.call("IPAdapterApply", **given, attn_mask=mask)
        assert same(model, advanced(host, **given, attn_mask=mask))
        assert not same(model, advanced(host, **given))

    def test_unfold_batch_is_a_picture_per_latent(self, host: Any, given: Any) -> None:
        (model,) = host.call("IPAdapterApply", **given, unfold_batch=True)
        assert same(model, advanced(host, "IPAdapterBatch", **given))
        assert not same(model, advanced(host, **given))

    @pytest.mark.parametrize(("noise", "strength"), [(0.01, 0.99), (1.0, 0.0)])
    def test_noise_is_a_negative(
        self, host: Any, given: Any, noise: float, strength: float
    ) -> None:
        (model,) = host.call("IPAdapterApply", **given, noise=noise)
        shuffled = {"type": "shuffle", "strength": strength, "blur": 0}
        (negative,) = host.call("IPAdapterNoise", **shuffled, image_optional=given["image"])
        assert same(model, advanced(host, **given, image_negative=negative))
        assert not same(model, advanced(host, **given))


class TestEncoded:
    @pytest.mark.parametrize("unfold", [False, True])
    def test_it_is_embeds(self, host: Any, given: Any, mask: torch.Tensor, unfold: bool) -> None:
        wires = {name: given[name] for name in ("ipadapter", "clip_vision")}
        embeds = [
            host.call("IPAdapterEncoder", **wires, image=image[None], weight=1.0)[0]
            for image in given["image"]
        ]
        (both,) = host.call("IPAdapterBatchEmbeds", embed1=embeds[0], embed2=embeds[1])
        shared = {**{name: given[name] for name in ("model", "ipadapter")}, "weight": 0.8}
        (model,) = host.call(
            "IPAdapterApplyEncoded", **shared, embeds=both, attn_mask=mask, unfold_batch=unfold
        )
        today = "IPAdapterEmbedsBatch" if unfold else "IPAdapterEmbeds"
        assert same(model, advanced(host, today, **shared, pos_embed=both, attn_mask=mask))


class TestFaces:
    @pytest.fixture
    def face(self, host: Any) -> dict[str, Any]:
        pytest.importorskip("insightface")
        from tools.face_models import astronaut, ensure_pack

        ensure_pack(host.base / "models" / "insightface", "buffalo_l")
        state = synthetic_adapter("FaceID Plus", "SD1.5", tiny=True, device="cpu", seed=4)
        read = host.module("ipadapter.adapters.checkpoint").checkpoint_from_dict
        adapter = host.module("ipadapter.adapters.adapter").Adapter
        return {
            "model": build_model(TINY_SD15),
            "ipadapter": adapter.from_checkpoint(read(state, "faceid-plus.bin")),
            "image": torch.from_numpy(astronaut().copy())[None].float() / 255,
            "clip_vision": tiny_clip_vision(projected=48, hidden=80),
            "insightface": host.call("InsightFaceLoader")[0],
        }

    @pytest.mark.parametrize(
        ("said", "version"),
        [({}, "auto"), ({"faceid_v2": False}, "v1"), ({"faceid_v2": True}, "v2")],
    )
    def test_versions(self, host: Any, face: Any, said: dict[str, bool], version: str) -> None:
        (model,) = host.call("IPAdapterApplyFaceID", **face, **said, weight_v2=0.7)
        wanted = advanced(
            host, "IPAdapterFaceID", **face, face_version=version, weight_faceidv2=0.7
        )
        assert same(model, wanted)
        assert not same(model, face["model"])

    @pytest.mark.parametrize("noise", [0.0, 0.3])
    def test_faces_through_the_plain_node(self, host: Any, face: Any, noise: float) -> None:
        """As files of December 2023 have it. There is no face in noise."""
        (model,) = host.call("IPAdapterApply", **face, noise=noise)
        shuffled = {"type": "shuffle", "strength": 1 - noise, "blur": 0}
        (negative,) = host.call("IPAdapterNoise", **shuffled, image_optional=face["image"])
        away = {"image_negative": negative} if noise else {}
        assert same(model, advanced(host, "IPAdapterFaceID", **face, **away, weight_faceidv2=2.0))

    @pytest.mark.parametrize("pad_around", [False, True])
    def test_room_around_a_face(self, host: Any, pad_around: bool) -> None:
        dark = torch.zeros(1, 96, 48, 3)
        (image,) = host.call("PrepImageForInsightFace", image=dark, pad_around=pad_around)
        assert image.shape == (1, 640, 640, 3)
        assert float(image[0, 0, 0, 0]) == pad_around
        assert float(image[:, 32:-32, 32:-32].max()) == 0


class TestOlderStill:
    """Nodes whose id stayed and whose inputs did not: the host's answer names the year."""

    def refused(self, host: Any, node_id: str, **inputs: Any) -> str:
        graph = {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1}},
            "2": {"class_type": node_id, "inputs": inputs},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        }
        graph["1"]["inputs"]["color"] = 0
        with pytest.raises(ValueError, match="refuses") as caught:
            host.run(graph)
        return str(caught.value)

    def test_encoder(self, host: Any) -> None:
        said = self.refused(
            host, "IPAdapterEncoder", clip_vision=["1", 0], image_1=["1", 0], weight_1=1.0
        )
        assert "of 2023" in said and "Connect ipadapter and image" in said

    def test_apply(self, host: Any) -> None:
        said = self.refused(host, "IPAdapterApply", weight=0.8, clip_vision_output=["1", 0])
        assert "September 2023" in said and "clip_vision and the picture to image" in said

    def test_prep_image(self, host: Any) -> None:
        """Its fourth widget was a switch: files of October 2023 put it where `size` is."""
        values = {"interpolation": "lanczos", "crop_position": "top", "sharpening": 0.1}
        said = self.refused(host, "PrepImageForClipVision", image=["1", 0], **values, size=False)
        assert "October 2023" in said and "set size to 224" in said
        assert "interpolation" not in said.replace("'interpolation'", "")


def test_without_a_picture_the_message_is_the_apply_nodes(host: Any, given: Any) -> None:
    wires = {name: given[name] for name in ("model", "ipadapter", "clip_vision")}
    with pytest.raises(ValueError, match="connect an IMAGE"):
        host.call("IPAdapterApply", **wires, image=None)


def test_graphs_need_no_more_than_model_adapter_and_picture(host: Any) -> None:
    """What is missing is said at the node; the host does not refuse the graph."""
    picture = {"width": 8, "height": 8, "batch_size": 1, "color": 0}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": picture},
        "2": {"class_type": "PrepImageForInsightFace", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    try:
        outputs = host.run(graph)
    except GraphError as error:
        pytest.fail(str(error))
    assert outputs["3"]["images"]
