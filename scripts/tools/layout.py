"""Where the nodes of a graph lie in the editor: coloured groups from left to right, each with a
column per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .graph import Graph, Link, Node

WIDTH, GAP, MARGIN = 320, 60, 30
TITLE, COLLAPSED = 30, 10
SAMPLER = "KSampler"
TALL = 1300  # where a column goes on beside itself


@dataclass(frozen=True)
class Section:
    """A group: its title, its colour, and the beginnings of the node classes that lie in it."""

    title: str
    colour: str
    kinds: tuple[str, ...]


_GREEN, _BLUE, _PURPLE, _ORANGE = "#8A8", "#3f789e", "#a1309b", "#b58b2a"
_MODELS = (
    "Checkpoint UNETLoader DualCLIPLoader VAELoader IPAdapterUnified IPAdapterModel "
    "IPAdapterImageEncoder CLIPVision Lora"
)
_GIVEN = (
    "LoadImage CLIPText Solid MaskComposite ImageBatch Canny Prep IPAdapterNoise "
    "FluxGuidance ConditioningZeroOut ImageScale VAEEncode ReferenceLatent"
)
SECTIONS = (
    Section("1 Models", _BLUE, (*_MODELS.split(), "ControlNetLoader")),
    Section("2 Your picture and words", _GREEN, (*_GIVEN.split(), "IPAdapterLoadEmbeds")),
    Section("3 Image prompt", _PURPLE, ("IPAdapter", "Conditioning", "ControlNetApply", "Pair")),
    Section("4 Result", _ORANGE, ("",)),
)
# Of the demo, where the models are given.
DEMO_SECTIONS = (
    Section("1 Your picture", _GREEN, ("LoadImage", "CLIPText")),
    Section("3 Compare", _ORANGE, ("SaveImage",)),
    Section("2 Run", _BLUE, ("",)),
)

Heights = Callable[[Node], float]
Column = list[tuple[Node, float]]  # nodes with their heights


def layout(
    graph: Graph, height_of: Heights, sections: Sequence[Section] = SECTIONS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Place, size and order of every node, and the groups, in the editor's words."""
    steps = {node.number: steps_before(node, graph.nodes) for node in graph.nodes}
    running = sorted(steps, key=lambda number: (steps[number], number))
    places: dict[int, dict[str, Any]] = {}
    groups, left = [], 0.0
    for section in sorted(sections, key=lambda section: section.title):
        nodes = [node for node in graph.nodes if _section(node, sections) is section]
        if not nodes:
            continue
        columns, bottom = _columns(nodes, height_of), 0.0
        for number, column in enumerate(columns):
            top = 0.0
            for node, height in column:
                place = {"pos": [left + number * (WIDTH + GAP), top], "size": [WIDTH, height]}
                places[node.number] = {**place, "order": running.index(node.number)}
                top += (COLLAPSED if node.collapsed else height) + GAP
            bottom = max(bottom, top - GAP)
        width = len(columns) * (WIDTH + GAP) - GAP
        box = [left - MARGIN, -TITLE - 2 * MARGIN, width + 2 * MARGIN, bottom + 3 * MARGIN + TITLE]
        groups.append(_group(section, box, len(groups) + 1))
        left += width + 2 * MARGIN + GAP
    return [places[node.number] for node in graph.nodes], groups


def _section(node: Node, sections: Sequence[Section]) -> Section:
    return next(section for section in sections if node.kind.startswith(section.kinds))


def _columns(nodes: Sequence[Node], height_of: Heights) -> list[Column]:
    """The nodes by the steps before them inside the group. Where all of a step are collapsed, it
    has no column of its own."""
    steps: dict[int, list[Node]] = {}
    last_sampler = max((steps_before(n, nodes) for n in nodes if n.kind == SAMPLER), default=0)
    for node in nodes:  # samplers lie below each other, to be compared
        step = last_sampler if node.kind == SAMPLER else steps_before(node, nodes)
        steps.setdefault(step, []).append(node)
    joined: list[list[Node]] = []
    for _, members in sorted(steps.items()):
        last = joined[-1] if joined else []
        if last and (all(n.collapsed for n in last) or all(n.collapsed for n in members)):
            last += members
        else:
            joined.append(members)
    return [part for members in joined for part in _parts(members, height_of)]


def _parts(nodes: Sequence[Node], height_of: Heights) -> list[Column]:
    """One column, or several where it would be too tall."""
    parts: list[Column] = [[]]
    top = 0.0
    for node in nodes:
        height = height_of(node)
        if parts[-1] and top + height > TALL:
            parts.append([])
            top = 0.0
        parts[-1].append((node, height))
        top += height + GAP
    return parts


def _group(section: Section, box: list[float], number: int) -> dict[str, Any]:
    return {
        "id": number,
        "title": section.title,
        "bounding": box,
        "color": section.colour,
        "font_size": 24,
        "flags": {},
    }


def steps_before(node: Node, nodes: Sequence[Node]) -> int:
    """The longest way to this node from one of `nodes` that needs none of the others."""
    linked = {value.node for value in node.inputs.values() if isinstance(value, Link)}
    before = [other for other in nodes if other.number in linked]
    return max((steps_before(other, nodes) + 1 for other in before), default=0)
