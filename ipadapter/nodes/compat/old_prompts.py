"""What prompts of other years leave out, call otherwise, or connect too much, on every node.

Hosts check a prompt by `INPUT_TYPES`, callers of the V1 kind read their lists from it, and the
editor builds its widgets from the schema. So the schema stays as it is, and `INPUT_TYPES` answers
more leniently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from comfy_api.latest import io

from ...apply.old_values import OLD_VALUES

logger = logging.getLogger("ipadapter")

# Settings that came after their nodes did: prompts from before, and programs that name only what
# they need, leave them out. Then they are what a new node's widget holds.
LATER = frozenset(
    {
        "add_ending_frames",
        "add_starting_frames",
        "combine_embeds",
        "composition_boost",
        "embeds_scaling",
        "encode_batch_size",
        "end_at",
        "enhance_ratio",
        "enhance_tiles",
        "expand_style",
        "layer_weights",
        "method",
        "model_name",
        "sharpening",
        "start_at",
        "style_boost",
        "weight_faceidv2",
        "weight_kolors",
    }
)
# Input names are not enough where another node has had the setting from the beginning.
LATER_ON: Mapping[str, frozenset[str]] = {"IPAdapter": frozenset({"weight_type"})}
NEEDED_ON: Mapping[str, frozenset[str]] = {"IPAdapterCombineEmbeds": frozenset({"method"})}


class Choices(list[str]):
    """A widget's values as callers of the V1 kind read them: a list.

    Hosts compare the two types of a link by `!=`: a COMBO output fits, or a list of any values.
    Old values are contained, and not listed.
    """

    def __init__(self, values: Iterable[str], old: Collection[str] = ()) -> None:
        super().__init__(values)
        self._old = tuple(old)

    def __contains__(self, value: object) -> bool:
        return super().__contains__(value) or value in self._old

    def __ne__(self, other: object) -> bool:
        if isinstance(other, str):
            return io.Combo.io_type not in other.split(",")
        return not isinstance(other, list)

    def __hash__(self) -> int:
        """Newer hosts look types up in a dict."""
        return id(self)


class Required(dict[str, Any]):
    """Inputs that a prompt must have; callers that look a later one up find it here too."""

    def __init__(self, inputs: Mapping[str, Any], later: Mapping[str, Any]) -> None:
        super().__init__(inputs)
        self._later = later

    def __missing__(self, name: str) -> Any:
        return self._later[name]


def accept_old_prompts(classes: Iterable[type[io.ComfyNode]]) -> None:
    """Let every node take prompts that leave out later settings, use old values, or link inputs
    that it does not have."""
    for node in classes:
        schema = node.GET_SCHEMA()  # asked once: some schemas list the files of a folder
        known, later = frozenset(given.id for given in schema.inputs), later_defaults(schema)
        set_method(node, "INPUT_TYPES", _input_types(frozenset(later)))
        run = _door(_function(io.ComfyNode.EXECUTE_NORMALIZED), known, later, schema.node_id)
        set_method(node, "EXECUTE_NORMALIZED", run)
        stamp = _function(node.fingerprint_inputs)
        if stamp is not _function(io.ComfyNode.fingerprint_inputs):
            set_method(node, "fingerprint_inputs", _door(stamp, known))


def _function(method: Any) -> Callable[..., Any]:
    return method.__func__


def set_method(node: type[io.ComfyNode], name: str, function: Callable[..., Any]) -> None:
    setattr(node, name, classmethod(function))


def later_defaults(schema: io.Schema) -> dict[str, Any]:
    """The settings of a node that a prompt may leave out, and what they are then."""
    names = LATER | LATER_ON.get(schema.node_id, frozenset())
    names -= NEEDED_ON.get(schema.node_id, frozenset())
    return {
        given.id: default_of(given)
        for given in schema.inputs
        if given.id in names and not given.optional
    }


def default_of(given: io.Input) -> Any:
    """What a new node's widget holds; None for a socket."""
    default, options = getattr(given, "default", None), getattr(given, "options", None)
    return options[0] if default is None and options else default


def _input_types(later: frozenset[str]) -> Callable[..., Any]:
    asked = _function(io.ComfyNode.INPUT_TYPES)

    def input_types(cls: type[io.ComfyNode], *args: Any, **given: Any) -> Any:
        answer = asked(cls, *args, **given)
        # ComfyUI 0.3.75 may ask for the schema beside the inputs.
        types = answer[0] if isinstance(answer, tuple) else answer
        for group in ("required", "optional"):
            types[group] = {
                name: _listed(name, declared) for name, declared in types.get(group, {}).items()
            }
        moved = {
            name: types["required"].pop(name) for name in list(types["required"]) if name in later
        }
        types["required"] = Required(types["required"], moved)
        types["optional"] = moved | types["optional"]
        return answer

    return input_types


def _listed(name: str, declared: tuple[Any, ...]) -> tuple[Any, ...]:
    """A widget with values, as (values, options); everything else as it is."""
    kind, *options = declared
    if kind != io.Combo.io_type:
        return declared
    values = options[0]["options"]
    old = [old for old, new in OLD_VALUES.get(name, {}).items() if new in values]
    return (Choices(values, old), *options)


def _door(
    inner: Callable[..., Any],
    known: frozenset[str],
    later: Mapping[str, Any] | None = None,
    node_id: str = "",
) -> Callable[..., Any]:
    """A method that the host calls with a prompt's inputs, given only those that the node has.

    node_id: of the node that says in the log what it ignores; "" says nothing.
    """

    def door(cls: type[io.ComfyNode], **given: Any) -> Any:
        unknown = sorted(given.keys() - known)
        if unknown and node_id:
            logger.warning(
                "%s ignores what is linked to %s: it has no such input.",
                node_id,
                ", ".join(unknown),
            )
        mine = {name: value for name, value in given.items() if name in known}
        return inner(cls, **{**(later or {}), **mine})

    return door
