"""The de facto interface: ids, inputs, order, defaults, ranges, outputs of the 37 known nodes.

`interface.json` is a transcription of those nodes' published interface, not of this pack's code.
Shared workflow files store widget values by position and other programs name inputs, so every
difference breaks somebody's file. Inputs of our own are optional and last.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.references.interface import INTERFACE

FACES = ("IPAdapterFaceID", "IPAAdapterFaceIDBatch", "IPAdapterFaceIDKolors")
# Inputs that only this pack has.
OURS = {
    "IPAdapterAdvanced": ["image_mask"],
    **{name: ["face_version", "missing_face"] for name in FACES},
    "IPAdapterWeights": ["seed"],
    "IPAdapterNoise": ["seed"],
    "PrepImageForClipVision": ["size"],
}

# What the older page's search needs: it reads ids and titles only. A file names neither.
SEARCHED = {"IPAdapter": " (Reference Picture)", "IPAdapterAdvanced": " (Image Prompt)"}


def served(host: Any, node_id: str) -> dict[str, Any]:
    """What GET /object_info says of a node."""
    return host.node(node_id).GET_NODE_INFO_V1()


def rows(info: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs of a node in order, in the form of interface.json."""
    groups = info["input"]
    return [
        _row(name, declared, group == "optional")
        for group in ("required", "optional")
        for name, declared in groups.get(group, {}).items()
    ]


def _row(name: str, declared: Any, optional: bool) -> dict[str, Any]:
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    row: dict[str, Any] = {"name": name, "type": kind}
    if kind == "COMBO":
        values = options["options"]
        row |= {"values": values, "default": options.get("default", next(iter(values), None))}
    if kind in ("INT", "FLOAT"):
        row |= {key: options.get(key) for key in ("default", "min", "max")}
        row["step"] = options.get("step", 1)
    if kind == "BOOLEAN":
        row["default"] = options["default"]
    if kind == "STRING":
        row["default"] = options.get("default", "")
        row |= {"multiline": True} if options.get("multiline") else {}
    return row | ({"optional": True} if optional else {})


def without_files(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """`found` without the file names on this machine where only the widget's name is fixed."""
    return {key: value for key, value in found.items() if key in expected}


def test_all_37_are_listed() -> None:
    assert len(INTERFACE) == 37


@pytest.mark.parametrize("node_id", sorted(INTERFACE))
class TestInterface:
    def test_names(self, host: Any, node_id: str) -> None:
        info, expected = served(host, node_id), INTERFACE[node_id]
        title = expected["display_name"] + SEARCHED.get(node_id, "")
        assert info["display_name"] == title
        assert info["category"] == expected["category"]
        assert info["output_node"] == expected.get("output_node", False)

    def test_inputs(self, host: Any, node_id: str) -> None:
        found, expected = rows(served(host, node_id)), INTERFACE[node_id]["inputs"]
        assert [row["name"] for row in found[: len(expected)]] == [row["name"] for row in expected]
        for mine, theirs in zip(found, expected, strict=False):
            if theirs["type"] == "COMBO" and "values" not in theirs:
                mine = without_files(mine, theirs)
            assert mine == theirs

    def test_our_own_inputs_are_optional_and_last(self, host: Any, node_id: str) -> None:
        more = rows(served(host, node_id))[len(INTERFACE[node_id]["inputs"]) :]
        assert [row["name"] for row in more] == OURS.get(node_id, [])
        assert all(row.get("optional") for row in more)

    def test_outputs(self, host: Any, node_id: str) -> None:
        info = served(host, node_id)
        found = [list(pair) for pair in zip(info["output"], info["output_name"], strict=True)]
        assert found == INTERFACE[node_id]["outputs"]


@pytest.mark.parametrize("node_id", sorted(INTERFACE))
class TestV2Fork:
    """Workflows of a fork name every node with "V2" at the end; its inputs are the known ones."""

    def test_it_is_the_same_node(self, host: Any, node_id: str) -> None:
        alias, known = served(host, f"{node_id}V2"), served(host, node_id)
        for part in ("input", "input_order", "output", "output_name", "output_node"):
            assert alias[part] == known[part]
        assert issubclass(host.node(f"{node_id}V2"), host.node(node_id))

    def test_it_is_hidden(self, host: Any, node_id: str) -> None:
        info = served(host, f"{node_id}V2")
        assert info["deprecated"] and not served(host, node_id)["deprecated"]
        assert INTERFACE[node_id]["display_name"] in info["description"]


def test_nodes_of_our_own_have_no_v2(host: Any) -> None:
    forked = {name for name in host.node_ids if name.endswith("V2")}
    assert forked == {f"{name}V2" for name in INTERFACE}
