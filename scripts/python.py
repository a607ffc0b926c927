"""Runs Python in this repository's environment, with ComfyUI: `python scripts/python.py ARGS`."""

from __future__ import annotations

import sys

from environment import SetUpError, ensure


def main() -> None:
    """Hand all arguments to the environment's interpreter."""
    try:
        environment = ensure(tools=True)
    except SetUpError as error:
        sys.exit(f"error: {error}")
    environment.become(sys.argv[1:])


if __name__ == "__main__":
    main()
