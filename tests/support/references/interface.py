"""The de facto interface of the known nodes, and what their widgets hold at first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[2] / "host" / "interface.json"
INTERFACE: dict[str, Any] = json.loads(_FILE.read_text("utf-8"))


def defaults(node_id: str) -> dict[str, Any]:
    """The value of each widget of a new node."""
    rows = INTERFACE[node_id]["inputs"]
    return {row["name"]: row["default"] for row in rows if "default" in row}
