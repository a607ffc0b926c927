"""Numeric widgets that are linked get what other packs' nodes call a number: each of these does
what the plain number does, on every node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.hosts.results import results
from support.hosts.wires import tiny_wires

FORMS = {
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np 0-d": np.array,
    "tensor 0-d": torch.tensor,
    "text": str,
    "list of one": lambda value: [np.float32(value)],
}
# What is read at Train, and at a loader that needs model files.
ELSEWHERE = {"IPAdapterTrain", "IPAdapterUnifiedLoaderFaceID"}
VALUES = {
    "INT": {"seed": 3, "size": 48, "blur": 4, "frames": 4, "encode_batch_size": 1},
    "FLOAT": {},
}


def numeric(host: Any) -> dict[str, dict[str, float]]:
    """Every node of the pack with numeric widgets, and a value for each."""
    found = {}
    for node_id in sorted(host.node_ids):
        inputs = host.node(node_id).GET_SCHEMA().inputs
        kinds = {given.id: given.get_io_type() for given in inputs}
        values = {
            name: VALUES[kind].get(name, 2 if kind == "INT" else 0.25)
            for name, kind in kinds.items()
            if kind in VALUES
        }
        found |= {node_id: values} if values else {}
    return found


@pytest.fixture(scope="module")
def wires(host: Any) -> dict[str, Any]:
    given = tiny_wires(host, pictures=2)
    loaded = host.module("ipadapter.apply.wire").LoadedAdapter
    given["ipadapter"] = loaded(given["ipadapter"], given["clip_vision"])
    (model,) = host.call(
        "IPAdapterAdvanced",
        **{name: given[name] for name in ("model", "ipadapter", "clip_vision", "image")},
    )
    record = host.call("IPAdapterRecordAttention", model=model, show="effect", blocks="all")[1]
    record._sums[(range(1),)] = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(2))
    positive, negative = host.call(
        "IPAdapterEncoder",
        **{name: given[name] for name in ("ipadapter", "clip_vision", "image")},
        weight=1.0,
    )
    mask = torch.ones(1, 16, 16)
    more = {
        "pos_embed": positive,
        "neg_embed": negative,
        "embeds": positive,
        "record": record,
        "mask": mask,
    }
    pictures = ("image_style", "image_composition", "image_optional")
    prompt = [[torch.zeros(1, 77, 8), {}]]
    texts = {"weights": "1.0, 0.0", "method": "full batch", "type": "gaussian", "positive": prompt}
    return {**given, **more, **texts, **dict.fromkeys(pictures, given["image"])}


def node_ids() -> list[str]:
    """Nodes with numeric widgets; the test below holds this list against the schemas."""
    return [
        "IPAAdapterFaceIDBatch", "IPAdapter", "IPAdapterAdvanced", "IPAdapterApply",
        "IPAdapterApplyEncoded", "IPAdapterApplyFaceID", "IPAdapterAttentionMap",
        "IPAdapterBatch", "IPAdapterClipVisionEnhancer", "IPAdapterClipVisionEnhancerBatch",
        "IPAdapterCombineWeights", "IPAdapterEmbeds", "IPAdapterEmbedsBatch", "IPAdapterEncoder",
        "IPAdapterFaceID", "IPAdapterFaceIDKolors", "IPAdapterHook", "IPAdapterImageEncoderSize",
        "IPAdapterMS", "IPAdapterNoise", "IPAdapterPreciseComposition",
        "IPAdapterPreciseCompositionBatch", "IPAdapterPreciseStyleTransfer",
        "IPAdapterPreciseStyleTransferBatch", "IPAdapterRegionalConditioning",
        "IPAdapterStyleComposition", "IPAdapterStyleCompositionBatch", "IPAdapterTiled",
        "IPAdapterTiledBatch", "IPAdapterWeights", "PrepImageForClipVision",
        "PrepImageForInsightFace",
    ]  # fmt: skip


def test_every_node_with_numbers_is_tested_here(host: Any) -> None:
    found = set(numeric(host)) - ELSEWHERE
    aliases = {f"{node_id}V2" for node_id in found | ELSEWHERE}  # the same class, another id
    assert found - aliases == set(node_ids())


@pytest.mark.parametrize("node_id", node_ids())
def test_every_form_of_a_number_does_what_the_number_does(
    host: Any, wires: dict[str, Any], node_id: str
) -> None:
    values = numeric(host)[node_id]
    expected = results(host, node_id, wires, values)
    for form, make in FORMS.items():
        given = {name: make(value) for name, value in values.items()}
        assert results(host, node_id, wires, given) == expected, form


@pytest.mark.parametrize("node_id", node_ids())
def test_what_is_no_number_is_refused_by_name(
    host: Any, wires: dict[str, Any], node_id: str
) -> None:
    """Never a TypeError from somewhere inside, and never silently taken."""
    values = numeric(host)[node_id]
    for name in values.keys() - {"weight_faceidv2", "weight_v2"}:  # read for FaceID Plus v2 only
        for bad in (object(), "strong", float("nan")):
            if name in ("image_weight", "weights_1", "weights_2") and bad != bad:
                continue  # one or many: what they may be is checked where they are used, at Apply
            with pytest.raises(ValueError, match=name if bad == bad else f"{name}|Weight 0"):
                results(host, node_id, wires, {**values, name: bad})


def test_settings_of_a_training_are_plain_numbers(host: Any) -> None:
    settings = host.module("ipadapter.nodes.training")._settings
    given = {"steps": 7, "learning_rate": 0.5, "seed": 2**63 + 1, "drop_image": 0.25}
    for make in (np.array, torch.tensor, str):
        values = {name: make(value) for name, value in given.items() if name != "seed"}
        made = settings({**values, "seed": np.uint64(given["seed"])}, "plain")
        assert {name: getattr(made, name) for name in given} == given
        assert type(made.steps) is int and type(made.learning_rate) is float
