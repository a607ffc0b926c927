"""Prompts as other programs have sent them for years: every known node, with its known inputs only.

Each graph names all required inputs and no more, as older editors exported them; those of 2023 and
of the V2 fork name what such prompts have, often less. None has the `_meta` of newer editors.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.hosts.server import script
from support.references.interface import INTERFACE
from support.references.programs import LISTS, PROGRAMS

Graph = dict[str, Any]
SPAN = {"start_at": 0, "end_at": 1}
SCALING = {"embeds_scaling": "V only"}
LINEAR = {"weight": 0.8, "weight_type": "linear"}
CONCAT = {"combine_embeds": "concat"}
FIXED: Graph = {
    "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": "random.safetensors"}),
    "text": ("CLIPTextEncode", {"text": "a picture", "clip": ["checkpoint", 1]}),
    "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
    "image": ("LoadImage", {"image": "person.png"}),
    "other": ("LoadImage", {"image": "cat.png"}),
    "both": ("ImageBatch", {"image1": ["image", 0], "image2": ["other", 0]}),
    "encoder": ("CLIPVisionLoader", {"clip_name": "random.safetensors"}),
    "adapter": ("IPAdapterModelLoader", {"ipadapter_file": "random.safetensors"}),
    "unified": (
        "IPAdapterUnifiedLoader",
        {"model": ["checkpoint", 0], "preset": "PLUS (high strength)"},
    ),
    "faces": ("IPAdapterInsightFaceLoader", {"provider": "CPU", "model_name": "buffalo_l"}),
    "mask": ("SolidMask", {"value": 1.0, "width": 64, "height": 64}),
}
MODEL = {"model": ["checkpoint", 0]}
BY_FILE = {"ipadapter": ["adapter", 0], "clip_vision": ["encoder", 0]}
BY_PRESET = {"model": ["unified", 0], "ipadapter": ["unified", 1]}
IMAGE = {"image": ["image", 0]}
EMBEDS = {"ipadapter": ["adapter", 0], **LINEAR, **SPAN, **SCALING}

# Graphs by name: nodes by id, each (class, inputs), after those of FIXED that they link to. What
# `chain` names is sampled: each takes the MODEL of the one before.
GRAPHS: dict[str, Graph] = {
    "simple": {
        "chain": ["apply"],
        "apply": (
            "IPAdapter",
            {**BY_PRESET, **IMAGE, "weight": 1, "weight_type": "prompt is more important", **SPAN},
        ),
    },
    "advanced": {
        "chain": ["apply"],
        "prep": (
            "PrepImageForClipVision",
            {**IMAGE, "interpolation": "LANCZOS", "crop_position": "top", "sharpening": 0.15},
        ),
        "noise": (
            "IPAdapterNoise",
            {"type": "shuffle", "strength": 0.4, "blur": 10, "image_optional": ["prep", 0]},
        ),
        "apply": (
            "IPAdapterAdvanced",
            {
                **MODEL,
                **BY_FILE,
                "image": ["prep", 0],
                "image_negative": ["noise", 0],
                "attn_mask": ["mask", 0],
                **LINEAR,
                **CONCAT,
                **SPAN,
                **SCALING,
            },
        ),
    },
    "weights": {
        "chain": ["first", "second"],
        "weights": (
            "IPAdapterWeights",
            {
                "weights": "1.0, 0.0",
                "timing": "linear",
                "frames": 2,
                "start_frame": 0,
                "end_frame": 9999,
                "add_starting_frames": 0,
                "add_ending_frames": 0,
                "method": "alternate batches",
                "image": ["both", 0],
            },
        ),
        "again": (
            "IPAdapterWeightsFromStrategy",
            {"weights_strategy": ["weights", 5], "image": ["both", 0]},
        ),
        "schedule": (
            "IPAdapterPromptScheduleFromWeightsStrategy",
            {"weights_strategy": ["weights", 5], "prompt": "a person\na cat"},
        ),
        "shown": ("PreviewAny", {"source": ["schedule", 0]}),
        "longer": (
            "IPAdapterCombineWeights",
            {"weights_1": ["weights", 0], "weights_2": ["again", 1]},
        ),
        "counted": ("PreviewAny", {"source": ["longer", 1]}),
        **{
            name: (
                "IPAdapterBatch",
                {
                    **BY_PRESET,
                    "image": image,
                    "weight": weight,
                    "weight_type": "ease in-out",
                    **SPAN,
                    **SCALING,
                    "encode_batch_size": 1,
                },
            )
            for name, image, weight in (
                ("first", ["weights", 3], ["weights", 0]),
                ("second", ["again", 4], ["again", 1]),
            )
        },
    },
    "faceid by preset": {
        "chain": ["apply"],
        "loader": (
            "IPAdapterUnifiedLoaderFaceID",
            {**MODEL, "preset": "FACEID", "lora_strength": 0.6, "provider": "CPU"},
        ),
        "apply": (
            "IPAdapterFaceID",
            {
                "model": ["loader", 0],
                "ipadapter": ["loader", 1],
                **IMAGE,
                **LINEAR,
                "weight_faceidv2": 1,
                **CONCAT,
                **SPAN,
                **SCALING,
            },
        ),
        "found": ("PreviewImage", {"images": ["apply", 1]}),
    },
    "faceid by file": {
        "chain": ["batch", "kolors"],
        "faceid": ("IPAdapterModelLoader", {"ipadapter_file": "random_faceid.safetensors"}),
        "lora": (
            "LoraLoaderModelOnly",
            {**MODEL, "lora_name": "random.safetensors", "strength_model": 0.6},
        ),
        **{
            name: (
                kind,
                {
                    "model": ["lora", 0],
                    "ipadapter": ["faceid", 0],
                    **IMAGE,
                    **LINEAR,
                    "weight_faceidv2": 1,
                    **({"weight_kolors": 1} if name == "kolors" else {}),
                    **CONCAT,
                    **SPAN,
                    **SCALING,
                    "insightface": ["faces", 0],
                },
            )
            for name, kind in {
                "batch": "IPAAdapterFaceIDBatch",
                "kolors": "IPAdapterFaceIDKolors",
            }.items()
        },
    },
    "tiled": {
        "chain": ["tiled", "batch"],
        "tiled": (
            "IPAdapterTiled",
            {**BY_PRESET, **IMAGE, **LINEAR, **CONCAT, **SPAN, "sharpening": 0.1, **SCALING},
        ),
        "tiles": ("PreviewImage", {"images": ["tiled", 1]}),
        "batch": (
            "IPAdapterTiledBatch",
            {
                **BY_PRESET,
                "image": ["both", 0],
                **LINEAR,
                **SPAN,
                "sharpening": 0,
                **SCALING,
                "encode_batch_size": 0,
            },
        ),
    },
    "embeds": {
        "chain": ["apply", "batch"],
        "one": ("IPAdapterEncoder", {**BY_FILE, **IMAGE, "weight": 1}),
        "two": (
            "IPAdapterEncoder",
            {**BY_FILE, "image": ["other", 0], "weight": 0.5, "mask": ["mask", 0]},
        ),
        "mix": (
            "IPAdapterCombineEmbeds",
            {"embed1": ["one", 0], "embed2": ["two", 0], "method": "norm average"},
        ),
        "save": ("IPAdapterSaveEmbeds", {"embeds": ["mix", 0], "filename_prefix": "IP_embeds"}),
        "apply": (
            "IPAdapterEmbeds",
            {**MODEL, **EMBEDS, "pos_embed": ["mix", 0], "neg_embed": ["one", 1]},
        ),
        "batch": ("IPAdapterEmbedsBatch", {**MODEL, **EMBEDS, "pos_embed": ["one", 0]}),
    },
    "old embeds file": {
        "chain": ["apply"],
        "load": ("IPAdapterLoadEmbeds", {"embeds": "old.ipadpt"}),
        "apply": ("IPAdapterEmbeds", {**MODEL, **EMBEDS, "pos_embed": ["load", 0]}),
    },
    "style and composition": {
        "chain": ["one", "batch"],
        **{
            name: (
                kind,
                {
                    **BY_PRESET,
                    "image_style": ["image", 0],
                    "image_composition": ["other", 0],
                    "weight_style": 1,
                    "weight_composition": 0.7,
                    "expand_style": name == "one",
                    **({"combine_embeds": "average"} if name == "one" else {}),
                    **SPAN,
                    **SCALING,
                },
            )
            for name, kind in {
                "one": "IPAdapterStyleComposition",
                "batch": "IPAdapterStyleCompositionBatch",
            }.items()
        },
    },
    "for experts": {
        "chain": ["ms", "enhancer", "batch"],
        "ms": (
            "IPAdapterMS",
            {
                **BY_PRESET,
                **IMAGE,
                **LINEAR,
                "weight_faceidv2": 1,
                **CONCAT,
                **SPAN,
                **SCALING,
                "layer_weights": "0:0.5, 2:1.2",
            },
        ),
        "enhancer": (
            "IPAdapterClipVisionEnhancer",
            {
                **BY_PRESET,
                **IMAGE,
                **LINEAR,
                **CONCAT,
                **SPAN,
                **SCALING,
                "enhance_tiles": 2,
                "enhance_ratio": 1,
            },
        ),
        "batch": (
            "IPAdapterClipVisionEnhancerBatch",
            {
                **BY_PRESET,
                "image": ["both", 0],
                **LINEAR,
                **SPAN,
                **SCALING,
                "enhance_tiles": 2,
                "enhance_ratio": 0.5,
                "encode_batch_size": 2,
            },
        ),
    },
    "regions": {
        "chain": ["apply"],
        **{
            name: (
                "IPAdapterRegionalConditioning",
                {
                    "image": [picture, 0],
                    "image_weight": 1,
                    "prompt_weight": 1,
                    "weight_type": "linear",
                    **SPAN,
                    "mask": ["mask", 0],
                    "positive": ["text", 0],
                    "negative": ["text", 0],
                },
            )
            for name, picture in {"left": "image", "right": "other"}.items()
        },
        "joined": ("IPAdapterCombineParams", {"params_1": ["left", 0], "params_2": ["right", 0]}),
        "apply": (
            "IPAdapterFromParams",
            {**BY_PRESET, "ipadapter_params": ["joined", 0], **CONCAT, **SCALING},
        ),
    },
    "precise": {
        "chain": ["style", "style batch", "composition", "composition batch"],
        **{
            name.lower(): (
                "IPAdapterPrecise"
                + {"style": "StyleTransfer", "composition": "Composition"}[name.split()[0]]
                + ("Batch" if name.endswith("batch") else ""),
                {
                    **BY_PRESET,
                    **IMAGE,
                    "weight": 0.9,
                    f"{name.split()[0]}_boost": 1,
                    **CONCAT,
                    **SPAN,
                    **SCALING,
                },
            )
            for name in ("style", "style batch", "composition", "composition batch")
        },
    },
    "community": {
        "chain": ["apply"],
        "loader": ("IPAdapterUnifiedLoaderCommunity", {**MODEL, "preset": "Composition"}),
        "apply": (
            "IPAdapterAdvanced",
            {
                "model": ["loader", 0],
                "ipadapter": ["loader", 1],
                **IMAGE,
                "weight": 1,
                "weight_type": "composition",
                **CONCAT,
                **SPAN,
                "embeds_scaling": "K+mean(V) w/ C penalty",
            },
        ),
    },
}

APPLY_2023 = {"weight": 0.7, "noise": 0.3, "weight_type": "channel penalty"}
FACE_2023 = {
    "file": ("IPAdapterModelLoader", {"ipadapter_file": "random_faceid.safetensors"}),
    "analysis": ("InsightFaceLoader", {"provider": "CPU"}),
}
OLDER: dict[str, Graph] = {
    "apply of 2023": {
        "chain": ["first", "second"],
        "first": (
            "IPAdapterApply",
            {**MODEL, **BY_FILE, **IMAGE, **APPLY_2023, **SPAN, "unfold_batch": False},
        ),
        "second": (
            "IPAdapterApply",
            {
                **{**MODEL, **BY_FILE, **APPLY_2023, **SPAN},
                **{"image": ["both", 0], "attn_mask": ["mask", 0], "unfold_batch": True},
            },
        ),
    },
    "bare apply of 2023": {
        "chain": ["apply"],
        "apply": ("IPAdapterApply", {**BY_PRESET, **IMAGE}),
    },
    "apply of September 2023": {
        "chain": ["apply"],
        "apply": ("IPAdapterApply", {**MODEL, **BY_FILE, **IMAGE, "weight": 0.6, "noise": 0.3}),
    },
    "faceid of December 2023": {
        "chain": ["apply"],
        **FACE_2023,
        "apply": (
            "IPAdapterApply",
            {
                **MODEL,
                **IMAGE,
                "ipadapter": ["file", 0],
                "insightface": ["analysis", 0],
                **{"weight": 0.9, "noise": 0, "weight_type": "original", **SPAN},
            },
        ),
    },
    "faceid of 2024": {
        "chain": ["apply"],
        **FACE_2023,
        "prep": (
            "PrepImageForInsightFace",
            {**IMAGE, "crop_position": "top", "sharpening": 0, "pad_around": False},
        ),
        "apply": (
            "IPAdapterApplyFaceID",
            {
                **MODEL,
                "image": ["prep", 0],
                "ipadapter": ["file", 0],
                "clip_vision": ["encoder", 0],
                "insightface": ["analysis", 0],
                **{"weight": 0.9, "noise": 0, "weight_type": "original", **SPAN},
                **{"faceid_v2": True, "weight_v2": 1, "unfold_batch": False},
            },
        ),
    },
    "encoded of 2023": {
        "chain": ["apply"],
        **{
            name: ("IPAdapterEncoder", {**BY_FILE, "image": [image, 0], "weight": 1})
            for name, image in {"one": "image", "two": "other"}.items()
        },
        "both": ("IPAdapterBatchEmbeds", {"embed1": ["one", 0], "embed2": ["two", 0]}),
        "apply": (
            "IPAdapterApplyEncoded",
            {**MODEL, "ipadapter": ["adapter", 0], "embeds": ["both", 0], "weight": 1},
        ),
    },
    "values and gaps of early 2024": {
        "chain": ["style", "composition", "simple"],
        "style": (
            "IPAdapterAdvanced",
            {
                **{**MODEL, **BY_FILE, **IMAGE, **SPAN},
                **{"weight": 0.8, "weight_type": "style transfer (SDXL)"},
            },
        ),
        "composition": (
            "IPAdapterBatch",
            {**BY_PRESET, **IMAGE, "weight": 0.8, "weight_type": "composition (SDXL)", **SPAN},
        ),
        "simple": ("IPAdapter", {**BY_PRESET, **IMAGE, "weight": 0.4, **SPAN}),
    },
    "links to nothing": {
        "chain": ["apply"],
        "apply": (
            "IPAdapterAdvanced",
            {**BY_PRESET, **IMAGE, **LINEAR, "noise_mask": ["mask", 0], "clip": ["checkpoint", 1]},
        ),
    },
    "v2 fork": {
        "chain": ["apply", "second"],
        "loader": (
            "IPAdapterUnifiedLoaderV2",
            {**MODEL, "preset": "PLUS (high strength)"},
        ),
        "prep": (
            "PrepImageForClipVisionV2",
            {**IMAGE, "interpolation": "LANCZOS", "crop_position": "top", "sharpening": 0.15},
        ),
        "apply": (
            "IPAdapterAdvancedV2",
            {"ipadapter": ["loader", 1], "image": ["prep", 0], **LINEAR, **CONCAT, **SPAN},
        ),
        "file": ("IPAdapterModelLoaderV2", {"ipadapter_file": "random_plus.safetensors"}),
        "second": (
            "IPAdapterMSV2",
            {
                **{"ipadapter": ["file", 0], "clip_vision": ["encoder", 0], **IMAGE, **LINEAR},
                "layer_weights": ", ".join(f"{index}:0.5" for index in range(12)),
                "weight_faceidv2": 1,
            },
        ),
    },
}
ALL = GRAPHS | OLDER | PROGRAMS


def prompt(described: Graph) -> Graph:
    """A described graph in full: with what it links to, and sampled."""
    nodes = {name: node for name, node in described.items() if name != "chain"}
    chain = described["chain"]
    first, inputs = nodes[chain[0]]
    nodes[chain[0]] = (first, MODEL | inputs)
    for before, after in pairwise(chain):
        nodes[after] = (nodes[after][0], {**nodes[after][1], "model": [before, 0]})
    sampler = {"seed": 1, "steps": 1, "cfg": 6, "sampler_name": "euler", "scheduler": "normal"}
    ends = {"positive": ["text", 0], "negative": ["text", 0], "latent_image": ["latent", 0]}
    nodes["sampler"] = (
        "KSampler",
        {**sampler, **ends, "denoise": 1, "model": [chain[-1], 0]},
    )
    nodes["decoded"] = ("VAEDecode", {"samples": ["sampler", 0], "vae": ["checkpoint", 2]})
    nodes["preview"] = ("PreviewImage", {"images": ["decoded", 0]})
    full: Graph = {}
    todo = list(nodes)
    while todo:
        name = todo.pop()
        if name not in full:
            kind, inputs = nodes.get(name) or FIXED[name]
            full[name] = {"class_type": kind, "inputs": inputs}
            todo += [value[0] for value in inputs.values() if isinstance(value, list)]
    return full


@pytest.fixture(scope="module")
def prepared(server: Any) -> Any:
    """The server with the pictures, face models and files that the prompts name."""
    script("workflows").write_pictures(server.base / "input")
    script("workflows").write_face_models(server.base / "models")
    adapters = server.base / "models" / "ipadapter"
    shutil.copy(adapters / "random_plus.safetensors", adapters / "composition.safetensors")
    embeds = torch.randn(1, 768, generator=torch.Generator().manual_seed(0))
    torch.save(embeds, server.base / "input" / "old.ipadpt")
    yield server
    (adapters / "composition.safetensors").unlink()


def test_all_known_nodes_are_used() -> None:
    used = {node["class_type"] for graph in GRAPHS.values() for node in prompt(graph).values()}
    assert INTERFACE.keys() <= used


@pytest.mark.parametrize("name", GRAPHS)
def test_prompts_name_known_inputs_only(name: str) -> None:
    """All that are required, and none of this pack's own."""
    for node in prompt(GRAPHS[name]).values():
        if node["class_type"] in INTERFACE:
            rows = INTERFACE[node["class_type"]]["inputs"]
            required = {row["name"] for row in rows if not row.get("optional")}
            assert required <= node["inputs"].keys() <= {row["name"] for row in rows}


@pytest.mark.parametrize("name", ALL)
def test_prompt_succeeds(prepared: Any, name: str) -> None:
    entry = prepared.wait(prepared.queue(prompt(ALL[name])))
    assert script("tools.comfy_server").error_of(entry) is None
    assert len(entry["outputs"]["preview"]["images"]) == 2


@pytest.mark.parametrize("kind", LISTS)
def test_programs_find_what_there_is(prepared: Any, kind: str) -> None:
    """In the two forms that hosts have for a list of choices."""
    first, *options = prepared.get("/object_info")[kind]["input"]["required"][LISTS[kind]]
    choices = options[0]["options"] if first == "COMBO" else first
    assert choices and all(isinstance(choice, str) for choice in choices)


def test_the_encoder_of_2023_is_refused_in_words(prepared: Any) -> None:
    """By the host, before anything runs: one line names the year and what to connect."""
    old = {"clip_vision": ["encoder", 0], "image_1": ["image", 0], "ipadapter_plus": False}
    described = {
        "chain": ["apply"],
        "one": ("IPAdapterEncoder", {**old, "noise": 0.3, "weight_1": 1.0}),
        "apply": (
            "IPAdapterApplyEncoded",
            {"ipadapter": ["adapter", 0], "embeds": ["one", 0], "weight": 1},
        ),
    }
    with pytest.raises(script("tools.comfy_server").ServerError, match="of 2023") as refused:
        prepared.queue(prompt(described))
    assert "Connect ipadapter and image" in str(refused.value)


def test_links_to_nothing_are_one_line_in_the_log(prepared: Any) -> None:
    before = prepared.log.read_text("utf-8").count("it has no such input")
    graph = prompt(OLDER["links to nothing"])
    graph["sampler"]["inputs"]["seed"] = 7
    graph["apply"]["inputs"]["weight"] = 0.33
    prepared.run(graph)
    text = prepared.log.read_text("utf-8")
    assert text.count("it has no such input") == before + 1
    assert "IPAdapterAdvanced ignores what is linked to clip, noise_mask" in text
