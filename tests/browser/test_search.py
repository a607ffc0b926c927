"""How people find the pack's nodes: by what they want, not by what it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hosts.page import Editor

# What is typed, and a node that must be among the answers that can be seen.
WANTED = {
    "image prompt": "IPAdapter Advanced (Image Prompt)",
    "reference picture": "IPAdapter (Reference Picture)",
    "style": "IPAdapter Style & Composition SDXL",
}


@pytest.mark.parametrize("words", WANTED)
def test_words_find_a_node(page: Editor, words: str, picture: Path) -> None:
    shown = page.search(words)
    page.shoot(picture)
    page.page.keyboard.press("Escape")
    assert any(WANTED[words] in text for text in shown), shown
    assert page.problems() == []


def test_seeds_stay(page: Editor) -> None:
    """A new seed after every run would train everything anew."""
    assert page.widget(page.add("IPAdapterTrain"), "control_after_generate") == "fixed"
    assert page.widget(page.add("KSampler"), "control_after_generate") == "randomize"


def test_a_files_own_choice_stays(page: Editor) -> None:
    node = page.add("IPAdapterTrain")
    page.set_widget(node, "control_after_generate", "increment")
    page.load(page.saved())
    assert page.widget(node, "control_after_generate") == "increment"
