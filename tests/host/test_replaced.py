"""Nodes renamed long ago: what the host is told fits today's nodes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

OLD = (
    "IPAdapterApply",
    "IPAdapterApplyEncoded",
    "IPAdapterApplyFaceID",
    "IPAdapterBatchEmbeds",
    "InsightFaceLoader",
    "PrepImageForInsightFace",
)


@pytest.fixture
def replaced(host: Any) -> Any:
    return host.module("ipadapter.nodes.compat.renamed")


def test_these_are_renamed(replaced: Any) -> None:
    assert sorted(replaced.RENAMED) == sorted(OLD)


@pytest.mark.parametrize("old", OLD)
def test_every_required_input_is_filled(host: Any, replaced: Any, old: str) -> None:
    renamed = replaced.RENAMED[old]
    inputs = host.node(renamed.new).INPUT_TYPES()
    filled = {entry["new_id"] for entry in replaced.input_mapping(renamed)}
    known = inputs["required"].keys() | inputs.get("optional", {}).keys()
    assert inputs["required"].keys() <= filled <= known
    for name, value in renamed.values.items():
        kind, options = inputs["required"][name]
        assert kind == "COMBO"
        assert value in options["options"]


def test_old_hosts_are_left_alone(replaced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without node replacement, such as 0.3.75."""
    monkeypatch.delattr(replaced.io, "NodeReplace", raising=False)
    asyncio.run(replaced.register_replacements())


def test_new_hosts_are_told(replaced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Replacement:
        async def register(self, entry: dict[str, Any]) -> None:
            told.append(entry)

    api = SimpleNamespace(node_replacement=Replacement())
    monkeypatch.setattr(replaced.io, "NodeReplace", dict, raising=False)
    monkeypatch.setattr(replaced.host_api, "ComfyAPI", lambda: api)
    asyncio.run(replaced.register_replacements())
    assert [entry["old_node_id"] for entry in told] == list(replaced.RENAMED)
    assert {"new_id": "pos_embed", "old_id": "embeds"} in told[2]["input_mapping"]
