"""README and help pages: links lead somewhere, model files are the official ones, nodes exist."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.models.official_files import OFFICIAL_FILES
from support.references.help import PAGES, ROOT
from support.references.interface import INTERFACE

from ipadapter.library.downloads import DOWNLOADS
from ipadapter.library.presets import ENCODER_SOURCES, OFFICIAL
from ipadapter.pictures.faces import PACKS

TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *PAGES.glob("*.md")])
# Names that a user or the pack gives, and what publishers call every file.
FREE = {"model.safetensors", "pytorch_model.bin"}


def declared_ids() -> set[str]:
    """Ids of the nodes in the source."""
    sources = [ROOT / "nodes.py", *(ROOT / "ipadapter" / "nodes").glob("*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    return set(re.findall(r"\bclass (\w+)\((?:io\.ComfyNode|ApplyNode|IPA\w+)\)", text)) - {
        "ApplyNode"
    }


def test_every_node_has_a_page() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == declared_ids()


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_pages_show_their_node(path: Path) -> None:
    assert f"](nodes/{path.stem}.png)" in path.read_text("utf-8").split("\n## ")[0]


@pytest.mark.parametrize("node_id", sorted(INTERFACE))
def test_pages_name_every_known_input(node_id: str) -> None:
    text = (PAGES / f"{node_id}.md").read_text("utf-8")
    for row in INTERFACE[node_id]["inputs"]:
        assert f"`{row['name']}`" in text
        assert "## Common mistakes" in text


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
class TestText:
    def test_links_lead_somewhere(self, path: Path) -> None:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8")):
            if not re.match(r"https?://", target):
                assert (path.parent / unquote(target)).exists(), target

    def test_model_files_are_official(self, path: Path) -> None:
        names = re.findall(r"[\w.-]+\.(?:safetensors|bin|onnx)\b", path.read_text("utf-8"))
        for name in names:
            assert name in official_names(), f"{path.name} names {name}"


def official_names() -> set[str]:
    """Every file that the loaders may ask for, by the name that users know."""
    needed = [item for presets in OFFICIAL.values() for item in presets.values()]
    adapters = {name for item in needed for name in (*item.files, item.lora) if name}
    faces = {f"{stem}.onnx" for stems in PACKS.values() for stem in stems}
    encoders = {encoder.file for encoder in ENCODER_SOURCES}
    published = {name.rsplit("/", 1)[-1] for file in DOWNLOADS.values() for name in (file.path,)}
    known = adapters | encoders | DOWNLOADS.keys() | published
    return known | FREE | faces | {file.name for file in OFFICIAL_FILES}
