"""Model files have one address each, written in one place."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.models.official_files import OFFICIAL_FILES

from ipadapter.library.downloads import DOWNLOADS, Download
from ipadapter.library.presets import ENCODER_SOURCES, OFFICIAL

ROOT = Path(__file__).resolve().parents[3]
HUB = re.compile(r"https://huggingface\.co/[\w./%-]+")

DIRECTORIES = (
    "ipadapter",
    "clip_vision",
    "loras",
    "checkpoints",
    "controlnet",
    "diffusion_models",
    "text_encoders",
    "vae",
)
TEXTS = ("*.md", "*.json", "*.py", "*.js", "*.toml")


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", *patterns]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in run.stdout.splitlines() if (ROOT / name).exists()]


def test_every_file_that_a_preset_asks_for_can_be_fetched() -> None:
    needed = [item for presets in OFFICIAL.values() for item in presets.values()]
    names = {name for item in needed for name in (*item.files, item.lora) if name}
    assert names | {encoder.file for encoder in ENCODER_SOURCES} <= DOWNLOADS.keys()
    assert {file.name for file in OFFICIAL_FILES} <= DOWNLOADS.keys()


@pytest.mark.parametrize("file", DOWNLOADS.values(), ids=lambda file: file.name)
def test_an_entry_is_whole(file: Download) -> None:
    assert re.fullmatch(r"https://huggingface\.co/[\w-]+/[\w.-]+/resolve/main/[\w./-]+", file.url)
    assert re.fullmatch(r"\d+(\.\d+)? [MG]B", file.size) and file.licence
    assert file.directory in DIRECTORIES


def test_every_address_of_a_file_is_one_of_the_table() -> None:
    """README, help pages, templates, messages: wherever an address of a model file stands."""
    known = {file.url for file in DOWNLOADS.values()}
    for path in tracked(*TEXTS, ":!tests"):
        for address in HUB.findall(path.read_text("utf-8")):
            if "/resolve/" in address:
                assert address in known, f"{path.relative_to(ROOT)} has {address}"


def test_addresses_are_written_once_in_code() -> None:
    for path in tracked("ipadapter/*.py", "nodes.py", "scripts/*.py"):
        if path.name != "downloads.py":
            assert "huggingface.co" not in path.read_text("utf-8"), path.name


def test_the_models_page_is_the_table() -> None:
    """Every file with its folder, address, size; README shows some of the same rows."""
    rows = (ROOT / "docs" / "models.md").read_text("utf-8").splitlines()
    listed = [row for row in rows if "](https://" in row]
    assert len(listed) == len(DOWNLOADS)
    for row, file in zip(listed, DOWNLOADS.values(), strict=True):
        assert row.startswith(f"| `{file.directory}` | [{file.name}]({file.url}) |")
        assert f"| {file.size} |" in row
    shown = (ROOT / "README.md").read_text("utf-8").splitlines()
    shown = [row for row in shown if "/resolve/main/" in row]
    assert len(shown) >= 5 and set(shown) <= set(listed)
    assert f"All {len(DOWNLOADS)} files" in (ROOT / "README.md").read_text("utf-8")


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda p: p.stem)
def test_the_page_can_offer_every_file_of_a_template(path: Path) -> None:
    for node in json.loads(path.read_text("utf-8"))["nodes"]:
        values = [value for value in node.get("widgets_values") or () if isinstance(value, str)]
        named = [v for v in values if v.endswith((".safetensors", ".bin")) and "ipadpt" not in v]
        entries = [
            {"name": name, "url": DOWNLOADS[name].url, "directory": DOWNLOADS[name].directory}
            for name in named
        ]
        assert node["properties"].get("models", []) == entries
