"""How graphs are described: functions that add nodes, each under a title and with a note."""

from __future__ import annotations

from collections.abc import Callable

from .graph import Graph

_BUILDERS: list[tuple[str, str, str, Callable[[Graph], None]]] = []


def graph(title: str, note: str) -> Callable[[Callable[[Graph], None]], Callable[[Graph], None]]:
    """Make a function the description of the workflow that bears its name."""

    def register(build: Callable[[Graph], None]) -> Callable[[Graph], None]:
        _BUILDERS.append((build.__name__, title, " ".join(note.split()), build))
        return build

    return register


def described() -> list[Graph]:
    """All that have been described, in order."""
    built = []
    for number, (name, title, note, build) in enumerate(_BUILDERS, 1):
        built.append(Graph(name, note, title=title, file=f"{number:02} {title}"))
        build(built[-1])
    return built
