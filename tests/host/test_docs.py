"""Help pages and locales keep to the schemas: every node, every input, the tables, the English.

After a change of a schema, IMAGE_PROMPT_WRITE_HELP=1 writes the tables and the English anew.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from support.references import help as manual
from support.references.help import PAGES, ROOT, english, inputs_of, renewed

LOCALES = ROOT / "locales"
LANGUAGES = ("en", "ja", "zh")
MAIN = {"IPAdapter", "IPAdapterAdvanced", "IPAdapterUnifiedLoader"}
WRITE = bool(os.environ.get("IMAGE_PROMPT_WRITE_HELP"))


@pytest.fixture(scope="module")
def every_node(host: Any) -> dict[str, dict[str, Any]]:
    """What GET /object_info says of each of the pack's nodes."""
    return {name: host.node(name).GET_NODE_INFO_V1() for name in sorted(host.node_ids)}


@pytest.fixture(scope="module")
def nodes(every_node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of those in the menu. The others are told by the node that their description names."""
    return {name: info for name, info in every_node.items() if not info["deprecated"]}


def node_defs(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


def test_every_node_has_a_page(nodes: dict[str, Any]) -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == nodes.keys()


def test_hidden_nodes_name_one_of_the_menu(
    every_node: dict[str, Any], nodes: dict[str, Any]
) -> None:
    names = {info["display_name"].split(" (")[0] for info in nodes.values()}
    for name in every_node.keys() - nodes.keys():
        info = every_node[name]
        assert any(shown in info["description"] for shown in names), name
        assert all(options.get("tooltip") for _, _, options, _ in inputs_of(info)), name


def test_tables_are_those_of_the_schemas(nodes: dict[str, Any]) -> None:
    for name, info in nodes.items():
        path = PAGES / f"{name}.md"
        text = path.read_text("utf-8")
        if WRITE:
            path.write_text(renewed(text, info), "utf-8", newline="\n")
        else:
            assert text == renewed(text, info), f"{path.name}: {__doc__}"


@pytest.mark.parametrize("language", manual.TRANSLATED)
def test_translated_pages_say_what_the_locale_says(language: str) -> None:
    pages = sorted(PAGES.glob(f"*/{language}.md"))
    assert {path.parent.name for path in pages} >= MAIN
    for path in pages:
        text = path.read_text("utf-8")
        made = manual.translated(text, language, node_defs(language)[path.parent.name])
        if WRITE:
            path.write_text(made, "utf-8", newline="\n")
        else:
            assert text == made, f"{path}: {__doc__}"
        for shown in re.findall(r"\]\(([^):]+)\)", text):  # the page takes them from web/docs
            assert (PAGES / shown).is_file(), shown


def test_every_input_is_explained(nodes: dict[str, Any]) -> None:
    for name, info in nodes.items():
        text = (PAGES / f"{name}.md").read_text("utf-8")
        assert text.startswith(f"# {info['display_name']}\n")
        for given, _, options, _ in inputs_of(info):
            assert options.get("tooltip"), f"{name}: {given} has no tooltip"
            assert f"`{given}`" in text


def test_english_is_that_of_the_schemas(nodes: dict[str, Any]) -> None:
    expected = {name: english(info) for name, info in nodes.items()}
    if WRITE:
        text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
        (LOCALES / "en" / "nodeDefs.json").write_text(text, "utf-8", newline="\n")
    else:
        assert node_defs("en") == expected, __doc__


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_name_every_node_and_input(nodes: dict[str, Any], language: str) -> None:
    found = node_defs(language)
    assert found.keys() == nodes.keys()
    for name, info in nodes.items():
        assert found[name]["display_name"]
        assert found[name]["description"]
        wanted = [given for given, *_ in inputs_of(info)]
        assert list(found[name]["inputs"]) == wanted, name
        for given, entry in found[name]["inputs"].items():
            assert entry["name"] and entry["tooltip"], f"{language}: {name}: {given}"
        for index in found[name].get("outputs", {}):
            assert int(index) < len(info["output"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_name_every_category(nodes: dict[str, Any], language: str) -> None:
    found = json.loads((LOCALES / language / "main.json").read_text("utf-8"))
    parts = {part for info in nodes.values() for part in info["category"].split("/")}
    assert found["nodeCategories"].keys() == parts


def test_search_words_belong_to_nodes_and_reach_hosts_that_know_them(host: Any) -> None:
    search = host.module("ipadapter.nodes.compat.search_words")
    assert search.ALIASES.keys() <= set(host.node_ids)
    schema = host.node("IPAdapterTiled").GET_SCHEMA()
    if hasattr(schema, "search_aliases"):
        assert {"image prompt", "reference picture"} <= set(schema.search_aliases)
        assert "style" in host.node("IPAdapterAdvanced").GET_SCHEMA().search_aliases


def test_files_of_presets_have_an_encoder() -> None:
    text = manual.files_section("IPAdapterModelLoader")
    text = re.sub(r"\]\([^)]*\) \([^)]*\)|\[", "", text)  # without addresses and sizes
    assert "PLUS (high strength): ip-adapter-plus_sd15.safetensors, encoder ViT-H" in text
    assert "VIT-G (medium strength): ip-adapter_sdxl.safetensors, encoder ViT-bigG" in text
    assert "ViT-bigG: CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors" in text
