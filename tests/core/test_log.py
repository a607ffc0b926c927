"""One logger, named after the pack, and messages that a user can act on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "__init__.py", ROOT / "nodes.py", *sorted((ROOT / "ipadapter").rglob("*.py"))]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
# Values whose text is a whole path, or a whole picture.
REVEALING = (
    r"\b(path|folder|root|parent|image|images|pixels|tensor|embeds|mask)\b(?!\.name|\.shape)"
)


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, dotted name, call) of every call in the pack."""
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", ast.unparse(node.func), node


def logged() -> list[tuple[str, ast.Call]]:
    """(place, call) of every log line."""
    found = []
    for place, name, call in calls():
        target, _, method = name.rpartition(".")
        if method in LEVELS and target.strip("_").lower() in ("log", "logger", "logging"):
            found.append((place, call))
    return found


def test_nothing_is_printed() -> None:
    printed = [place for place, name, _ in calls() if name in ("print", "sys.stdout.write")]
    assert printed == []


def test_there_is_one_logger() -> None:
    asked = [(place, ast.unparse(call)) for place, name, call in calls() if "getLogger" in name]
    assert asked
    for place, text in asked:
        assert text == "logging.getLogger('ipadapter')", place
    for place, call in logged():
        assert not ast.unparse(call.func).startswith("logging."), f"{place} uses the root logger"


def test_the_loggers_settings_are_the_hosts() -> None:
    touched = re.compile(r"setLevel|addHandler|basicConfig|captureWarnings|propagate")
    assert [place for place, name, _ in calls() if touched.search(name)] == []


@pytest.mark.parametrize(
    ("place", "call"), logged(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_line_has_a_fixed_text_and_no_whole_paths_or_pictures(place: str, call: ast.Call) -> None:
    message, *values = call.args
    assert isinstance(message, ast.Constant) and isinstance(message.value, str), place
    assert "\n" not in message.value
    assert message.value.count("%") - 2 * message.value.count("%%") >= len(values)
    for value in values:
        assert not re.fullmatch(REVEALING, ast.unparse(value)), f"{place}: {ast.unparse(value)}"
