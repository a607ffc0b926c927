"""Runs Python in this repository's environment, with ComfyUI: `python scripts/python.py ARGS`."""

from __future__ import annotations

import sys

from tools.environment import ready


def main() -> None:
    """Hand all arguments to the environment's interpreter."""
    ready(tools=True).become(sys.argv[1:])


if __name__ == "__main__":
    main()
