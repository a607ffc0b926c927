"""The codes that end messages: each is used, and explained in every language."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from ipadapter.errors import Problem, plain_text
from ipadapter.library.scan import read_contents
from ipadapter.pictures.embeds import load_embeds

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "ja", "zh")


def explained(language: str) -> dict[str, str]:
    path = ROOT / "locales" / language / "main.json"
    return json.loads(path.read_text("utf-8"))["imagePromptProblems"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_locales_explain_every_code(language: str) -> None:
    texts = explained(language)
    assert list(texts) == [problem.value for problem in Problem]
    assert all(text.endswith("." if language == "en" else "。") for text in texts.values())
    assert len(set(texts.values())) == len(texts)


def test_every_code_is_used() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "ipadapter").rglob("*.py")]
    used = set(re.findall(r"\bProblem\.([A-Z_]+)\(", "\n".join(sources)))
    assert used == set(Problem.__members__)


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ImportError])
def test_a_code_ends_the_message(kind: type[Exception]) -> None:
    error = Problem.FILE_MISSING("There is no [such-file].", kind)
    assert type(error) is kind
    assert str(error) == "There is no [such-file]. [file-missing]"
    assert plain_text(error) == "There is no [such-file]."


def test_a_value_error_unless_told() -> None:
    assert type(Problem.NO_FACE("No face.")) is ValueError


@pytest.mark.parametrize("text", ["", "plain", "[file-missing] first", "ends [otherwise]"])
def test_other_messages_stay(text: str) -> None:
    assert plain_text(KeyError(text)) == str(KeyError(text))
    assert plain_text(ValueError(text)) == text


def test_a_quoted_message_brings_no_second_code(tmp_path: Path) -> None:
    path = tmp_path / "old.ipadpt"
    torch.save(torch.full((1, 4), float("nan")), path)
    with pytest.raises(ValueError, match="damaged: Expected features of finite") as caught:
        load_embeds(path)
    assert re.findall(r"\[[a-z-]+\]", str(caught.value)) == ["[file-broken]"]


def test_reports_bring_no_codes(tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_text("<!doctype html><title>Sign in</title>", "utf-8")
    problem = read_contents(path).problem
    assert "a web page" in problem
    assert problem.endswith(".")
