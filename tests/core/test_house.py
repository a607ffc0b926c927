"""The tree: dependencies run one way, no module imports a higher floor, and there is no circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the ground up; folders on one floor may use each other one way only.
FLOORS = (
    ("errors",),
    ("files", "bases", "frames"),
    ("attention",),
    ("adapters",),
    ("pictures", "library", "training"),
    ("apply",),
    ("host",),
    ("nodes",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted((ROOT / "ipadapter").rglob("*.py"))


def name_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT / "ipadapter").with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> set[tuple[str, ...]]:
    """The pack's modules that a module imports, by their names below `ipadapter`."""
    folder = path.relative_to(ROOT / "ipadapter").parent.parts
    known, found = {name_of(module) for module in MODULES}, set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = folder[: len(folder) - node.level + 1]
            module = (*start, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                inner = (*module, alias.name)
                found.add(inner if inner in known else module)
    return found & known - {()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(name_of(path)) or "ipadapter")
def test_no_module_imports_a_higher_floor(path: Path) -> None:
    here = name_of(path)
    if here:
        above = [there for there in imported(path) if FLOOR[there[0]] > FLOOR[here[0]]]
        assert not above, f"{'.'.join(here)} imports {above}"


def test_there_is_no_circle_of_modules_or_rooms() -> None:
    modules = {name_of(path): imported(path) - {name_of(path)} for path in MODULES}
    rooms: dict[str, set[str]] = {}
    for here, there in modules.items():
        if here:
            rooms.setdefault(here[0], set()).update(name[0] for name in there if name[0] != here[0])
    assert list(TopologicalSorter(modules).static_order())
    assert list(TopologicalSorter(rooms).static_order())


def test_every_room_has_a_floor() -> None:
    assert {name_of(path)[0] for path in MODULES if name_of(path)} == FLOOR.keys()


def test_one_folder_only_is_taken_for_templates() -> None:
    """Of a pack's folders with these names the server lists all and serves the first it finds."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (ROOT / name).is_dir()] == ["workflows"]


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "README.md"])
def test_pages_name_files_that_exist(page: str) -> None:
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text("utf-8"))
    named = [name for name in quoted if re.fullmatch(r"[\w.]+(/[a-z_.\d]+)+\.\w+", name)]
    folders = (ROOT, ROOT / "ipadapter")
    assert not [name for name in named if not any((at / name).exists() for at in folders)]


def test_the_map_names_every_module() -> None:
    tree = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("```")[1]
    words = set(re.findall(r"[a-z_0-9]+", tree))
    deep = [name for name in map(name_of, MODULES) if len(name) < 3 and name[:1] != ("nodes",)]
    assert not [name for name in deep if not words.issuperset(name)]
