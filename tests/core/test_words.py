"""Texts are written whole: no empty pieces, no line broken before it is full, no lone last word."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    ROOT / "nodes.py",
    *(
        path
        for folder in ("ipadapter", "scripts", "clients", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]
ENOUGH = 92  # of 100 columns: a line that reaches so far is full
FIRST_WORD = re.compile(r"[a-z]*[\"'](\{[^}]*\}\S*|\S*) ?", re.IGNORECASE)
SIGNIFICANT = (tokenize.NL, tokenize.COMMENT)


def pieces(path: Path) -> list[tuple[tokenize.TokenInfo, tokenize.TokenInfo]]:
    """Adjacent literals that Python joins into one text."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
    kept = [token for token in tokens if token.type not in SIGNIFICANT]
    texts = (tokenize.STRING, tokenize.STRING)
    return [pair for pair in pairwise(kept) if (pair[0].type, pair[1].type) == texts]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_texts_are_written_whole(path: Path) -> None:
    for first, second in pieces(path):
        where = f"{path.name}:{first.start[0]}"
        assert first.string.strip("frb") not in ('""', "''"), f"{where} has an empty piece"
        assert second.string.strip("frb") not in ('""', "''"), f"{where} has an empty piece"
        whole_line = second.start[0] == first.end[0] + 1 and not first.string.endswith('\\n"')
        word = FIRST_WORD.match(second.string)
        sentence = re.search(r"([.:;] |;)[\"']$", first.string)  # programs end statements so
        if (
            whole_line
            and word
            and word[1]
            and not sentence
            and second.line.strip().startswith(second.string)
        ):
            assert first.end[1] + len(word[0]) > ENOUGH, f"{where} is broken early"


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_summary_ends_on_a_lone_word(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    texts = [ast.get_docstring(node) for node in nodes if isinstance(node, DOCUMENTED)]
    for summary in (text.split("\n\n")[0] for text in texts if text):
        last = summary.splitlines()[-1]
        lone = "\n" in summary and " " not in last and "://" not in last and "->" not in summary
        assert not lone, f"{path.name}: a summary ends on {last!r}"
