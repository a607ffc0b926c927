"""Other packs call these node classes from Python. One test per call, as its callers write it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.hosts.wires import same, tiny_wires
from support.models.adapters import synthetic_adapter
from support.models.unets import TINY_SD15, random_adapter


@pytest.fixture(scope="module")
def given(host: Any) -> dict[str, Any]:
    """What callers hold: MODEL, adapter, encoder, a picture, a mask."""
    return {**tiny_wires(host), "mask": torch.ones(1, 16, 16)}


@pytest.fixture(scope="module")
def pipeline(host: Any, given: dict[str, Any]) -> Any:
    """The IPADAPTER of a unified loader."""
    payload = host.module("ipadapter.apply.wire")
    return payload.LoadedAdapter(given["ipadapter"], given["clip_vision"])


@pytest.fixture(scope="module")
def face_models(host: Any) -> None:
    pytest.importorskip("insightface")
    from tools.face_models import ensure_pack

    ensure_pack(host.base / "models" / "insightface", "buffalo_l")


def flat(state: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """An adapter's tensors as a .safetensors file names them."""
    return {f"{part}.{name}": t for part, values in state.items() for name, t in values.items()}


def mapped(host: Any, node_id: str) -> Any:
    """What `NODE_CLASS_MAPPINGS[node_id]()` gives callers."""
    return host.node(node_id)()


def patch(model: Any) -> dict[Any, Any]:
    return model.model_options["transformer_options"]["patches_replace"]["attn2"]


class TestAdvanced:
    def test_all_by_name(self, host: Any, given: dict[str, Any]) -> None:
        """As a detailer's image prompt provider calls it."""
        model = mapped(host, "IPAdapterAdvanced").apply_ipadapter(
            model=given["model"],
            ipadapter=given["ipadapter"],
            weight=0.7,
            weight_type="ease in",
            start_at=0.0,
            end_at=1.0,
            combine_embeds="concat",
            clip_vision=given["clip_vision"],
            image=given["image"],
            image_negative=None,
            attn_mask=None,
            insightface=None,
            weight_faceidv2=1.0,
        )[0]
        (by_node,) = host.call(
            "IPAdapterAdvanced",
            **{name: given[name] for name in ("model", "ipadapter", "clip_vision", "image")},
            weight=0.7,
            weight_type="ease in",
        )
        assert same(model, by_node)

    def test_model_and_adapter_by_position(self, host: Any, pipeline: Any, given: Any) -> None:
        """Two results are unpacked; the second is the face picture, if any."""
        model, face = mapped(host, "IPAdapterAdvanced").apply_ipadapter(
            given["model"],
            pipeline,
            weight=1.0,
            weight_type="linear",
            start_at=0.0,
            end_at=1.0,
            combine_embeds="concat",
            weight_faceidv2=1.0,
            image=given["image"],
            image_negative=None,
            weight_style=1.0,
            weight_composition=1.0,
            image_style=None,
            image_composition=None,
            expand_style=False,
            clip_vision=None,
            attn_mask=given["mask"],
            insightface=None,
            embeds_scaling="V only",
            weight_kolors=1.0,
        )
        assert patch(model)
        assert face is None

    def test_everything_by_position(self, host: Any, given: dict[str, Any]) -> None:
        model, _ = mapped(host, "IPAdapterAdvanced").apply_ipadapter(
            given["model"],
            given["ipadapter"],
            0.0,
            1.0,
            0.8,
            1.0,
            1.0,
            False,
            "linear",
            "concat",
            None,
            given["image"],
            None,
            None,
            None,
            given["clip_vision"],
            given["mask"],
            None,
            "V only",
            None,
            None,
            0,
            None,
        )
        assert len(patch(model)) >= TINY_SD15.layers

    def test_layer_weights(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        model, _ = mapped(host, "IPAdapterAdvanced").apply_ipadapter(
            given["model"], pipeline, weight=1.0, image=given["image"], layer_weights="4:0.5"
        )
        (by_node,) = host.call(
            "IPAdapterMS",
            model=given["model"],
            ipadapter=pipeline,
            image=given["image"],
            layer_weights="4:0.5",
        )
        assert same(model, by_node)

    def test_style_and_composition(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        pictures = {"image_style": given["image"], "image_composition": given["image"].flip(2)}
        model, _ = mapped(host, "IPAdapterAdvanced").apply_ipadapter(
            given["model"],
            pipeline,
            start_at=0.0,
            end_at=1.0,
            weight_style=0.9,
            weight_composition=0.4,
            weight_type="linear",
            combine_embeds="average",
            weight_faceidv2=0.4,
            image_negative=None,
            expand_style=False,
            **pictures,
        )
        (by_node,) = host.call(
            "IPAdapterStyleComposition",
            model=given["model"],
            ipadapter=pipeline,
            weight_style=0.9,
            weight_composition=0.4,
            combine_embeds="average",
            **pictures,
        )
        assert same(model, by_node)

    def test_unknown_argument(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        with pytest.raises(TypeError, match="wieght"):
            mapped(host, "IPAdapterAdvanced").apply_ipadapter(given["model"], pipeline, wieght=1.0)


def test_batch(host: Any, given: dict[str, Any], pipeline: Any) -> None:
    """Called with the settings of the other Apply nodes too."""
    model, _ = mapped(host, "IPAdapterBatch").apply_ipadapter(
        given["model"],
        pipeline,
        weight=[0.2, 0.9],
        weight_type="linear",
        combine_embeds="concat",
        image=given["image"].repeat(2, 1, 1, 1),
        weight_style=1.0,
        expand_style=False,
        weight_kolors=1.0,
        encode_batch_size=1,
    )
    assert patch(model)


def test_simple(host: Any, given: dict[str, Any], pipeline: Any) -> None:
    model, _ = mapped(host, "IPAdapter").apply_ipadapter(
        given["model"], pipeline, given["image"], 0.8, 0.0, 1.0, "standard", given["mask"]
    )
    by_name, _ = mapped(host, "IPAdapter").apply_ipadapter(
        given["model"],
        pipeline,
        given["image"],
        0.8,
        0.0,
        1.0,
        weight_type="standard",
        attn_mask=given["mask"],
    )
    assert same(model, by_name)


@pytest.mark.parametrize("node_id", ["IPAdapterTiled", "IPAdapterTiledBatch"])
def test_tiled(host: Any, given: dict[str, Any], pipeline: Any, node_id: str) -> None:
    model, images, masks = mapped(host, node_id).apply_tiled(
        given["model"],
        pipeline,
        given["image"],
        1.0,
        "linear",
        0.0,
        1.0,
        sharpening=0.0,
        combine_embeds="concat",
        image_negative=None,
        attn_mask=None,
        clip_vision=None,
        embeds_scaling="V only",
    )
    assert patch(model)
    assert len(images) == len(masks) == 2  # 56 x 40 px: two tiles side by side


class TestEmbeds:
    def test_apply(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        positive, negative = mapped(host, "IPAdapterEncoder").encode(
            pipeline, given["image"], 1.0, None, clip_vision=None
        )
        model, _ = mapped(host, "IPAdapterEmbeds").apply_ipadapter(
            given["model"],
            pipeline,
            positive,
            1.0,
            "linear",
            0.0,
            1.0,
            neg_embed=negative,
            attn_mask=None,
            clip_vision=None,
            embeds_scaling="V only",
        )
        (direct,) = host.call(
            "IPAdapterAdvanced", model=given["model"], ipadapter=pipeline, image=given["image"]
        )
        assert same(model, direct)

    def test_all_by_position(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        positive, negative = mapped(host, "IPAdapterEncoder").encode(pipeline, given["image"], 1.0)
        (model, _) = mapped(host, "IPAdapterEmbeds").apply_ipadapter(
            given["model"],
            pipeline,
            *(positive, 1.0, "linear", 0.0, 1.0, negative, given["mask"], None, "V only"),
        )
        assert patch(model)

    def test_callers_stack_and_average(self, host: Any, given: Any, pipeline: Any) -> None:
        """Embeds come as tensors: some callers combine them with torch, some with our node."""
        encoder, combiner = mapped(host, "IPAdapterEncoder"), mapped(host, "IPAdapterCombineEmbeds")
        pictures = [given["image"], given["image"].flip(1)]
        embeds = [encoder.encode(pipeline, image, 1.0, mask=None)[0] for image in pictures]
        by_torch = torch.mean(torch.cat(embeds, dim=0), dim=0).unsqueeze(0)
        (by_node,) = combiner.batch(embeds[0], method="average", embed2=embeds[1])
        assert torch.allclose(by_torch, by_node, atol=1e-6)

    def test_weight_by_name(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        """As exported scripts call it."""
        encode = mapped(host, "IPAdapterEncoder").encode
        half, _ = encode(weight=0.5, ipadapter=pipeline, image=given["image"])
        whole, _ = encode(weight=1, ipadapter=pipeline, image=given["image"])
        assert torch.allclose(2 * half, whole, atol=1e-6)


class TestRegions:
    def test_regions_are_lists(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        """Callers join the lists of two regions by key, then apply them."""
        node, text = mapped(host, "IPAdapterRegionalConditioning"), [[torch.zeros(1, 77, 64), {}]]
        params, positive, negative = node.conditioning(
            given["image"], 0.8, 1.0, "linear", 0.0, 1.0, mask=given["mask"], positive=text
        )
        assert torch.equal(positive[0][1]["mask"], given["mask"])
        assert negative == []
        names = ("image", "attn_mask", "weight", "weight_type", "start_at", "end_at")
        both = {name: params[name] + params[name] for name in names}
        model, _ = mapped(host, "IPAdapterFromParams").apply_ipadapter(
            given["model"],
            pipeline,
            clip_vision=None,
            combine_embeds="concat",
            embeds_scaling="V only",
            image_negative=None,
            ipadapter_params=both,
        )
        assert patch(model)


class TestLoaders:
    def test_adapter_file(self, host: Any) -> None:
        state = random_adapter(TINY_SD15, embed_dim=48)
        save_file(flat(state), host.models("ipadapter") / "called.safetensors")
        (by_name, *_) = mapped(host, "IPAdapterModelLoader").load_ipadapter_model(
            ipadapter_file="called.safetensors"
        )
        by_place = mapped(host, "IPAdapterModelLoader").load_ipadapter_model("called.safetensors")
        assert by_name.spec == by_place[0].spec

    def test_face_analysis(self, host: Any, face_models: None) -> None:
        """Callers leave the pack's name to its default."""
        loader = mapped(host, "IPAdapterInsightFaceLoader")
        by_place = loader.load_insightface("CPU")[0]
        by_name = loader.load_insightface(provider="CPU", model_name="buffalo_l")[0]
        assert by_place is by_name

    def test_unified(self, host: Any, given: dict[str, Any], face_models: None) -> None:
        state = synthetic_adapter("FaceID", "SD1.5", tiny=True, device="cpu", seed=4)
        save_file(flat(state), host.models("ipadapter") / "called_faceid.safetensors")
        model, pipeline = mapped(host, "IPAdapterUnifiedLoaderFaceID").load_models(
            preset="FACEID", lora_strength=0.0, provider="CPU", model=given["model"]
        )
        assert model is given["model"]
        assert pipeline["insightface"]["model"] is not None

    def test_pipeline_reads_as_a_dict(self, given: dict[str, Any], pipeline: Any) -> None:
        """Callers take the unified loader's output apart."""
        assert "ipadapter" in pipeline
        assert pipeline["ipadapter"]["model"] is given["ipadapter"]
        assert pipeline["clipvision"]["model"] is given["clip_vision"]
        assert pipeline["insightface"]["model"] is None

    def test_pipeline_of_callers(self, host: Any, given: dict[str, Any]) -> None:
        """Some build the dict themselves, around what our loaders gave them."""
        theirs = {
            "ipadapter": {"model": given["ipadapter"]},
            "clipvision": {"model": given["clip_vision"]},
        }
        (model, _) = mapped(host, "IPAdapterAdvanced").apply_ipadapter(
            given["model"], theirs, image=given["image"], weight=1.0, weight_type="linear"
        )
        assert patch(model)


class TestOf2023:
    """As a regional pack and a model helper called the nodes of that time."""

    def test_apply(self, host: Any, given: dict[str, Any]) -> None:
        model = mapped(host, "IPAdapterApply").apply_ipadapter(
            given["ipadapter"],
            given["model"],
            0.7,
            clip_vision=given["clip_vision"],
            image=given["image"],
            embeds=None,
            weight_type="original",
            noise=0.0,
            attn_mask=given["mask"],
            start_at=0.0,
            end_at=1.0,
            unfold_batch=False,
        )[0]
        (by_node,) = host.call(
            "IPAdapterAdvanced",
            **{name: given[name] for name in ("model", "ipadapter", "clip_vision", "image")},
            weight=0.7,
            attn_mask=given["mask"],
        )
        assert same(model, by_node)

    def test_encoded(self, host: Any, given: dict[str, Any], pipeline: Any) -> None:
        embeds, _ = mapped(host, "IPAdapterEncoder").encode(pipeline, given["image"], 1.0)
        model = mapped(host, "IPAdapterApplyEncoded").apply_ipadapter(
            given["ipadapter"],
            given["model"],
            0.7,
            clip_vision=given["clip_vision"],
            embeds=embeds,
            weight_type="original",
            noise=0.5,
            attn_mask=given["mask"],
        )[0]
        assert patch(model)

    def test_face_analysis(self, host: Any, face_models: None) -> None:
        loaded = mapped(host, "InsightFaceLoader").load_insight_face("CPU")[0]
        assert loaded is mapped(host, "IPAdapterInsightFaceLoader").load_insightface("CPU")[0]


def test_prep_image(host: Any, given: dict[str, Any]) -> None:
    (image,) = mapped(host, "PrepImageForClipVision").prep_image(
        interpolation="LANCZOS", crop_position="center", sharpening=0.0, image=given["image"]
    )
    assert image.shape == (1, 224, 224, 3)
