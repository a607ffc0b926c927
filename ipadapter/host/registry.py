"""Living beside other packs: node ids that are taken stay theirs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nodes as host_nodes

logger = logging.getLogger("ipadapter")
_PACK = Path(__file__).resolve().parents[2].name


def unclaimed(classes: Iterable[Any]) -> list[Any]:
    """The nodes whose ids no other pack has registered. One log line names the others."""
    free, taken = [], []
    for node in classes:
        registered = host_nodes.NODE_CLASS_MAPPINGS  # pyright: ignore[reportAttributeAccessIssue]
        owner = registered.get(node.GET_SCHEMA().node_id)
        mine = owner is None or _PACK in getattr(owner, "RELATIVE_PYTHON_MODULE", "")
        (free if mine else taken).append(node)
    if taken:
        names = ", ".join(node.GET_SCHEMA().node_id for node in taken)
        logger.warning(
            "Another installed pack already provides %s. Those nodes stay that pack's; remove it "
            "to use these.",
            names,
        )
    return free
