"""Make ComfyUI importable in this process, on the CPU unless asked otherwise."""

import os
import sys
from pathlib import Path
from typing import Any


def use_host(path: str | os.PathLike | None = None, cpu: bool = True) -> Path:
    """Put ComfyUI (`path`, else COMFYUI_PATH) first on sys.path and set its options."""
    given = path or os.environ.get("COMFYUI_PATH")
    if not given or not (Path(given) / "comfy" / "sd.py").is_file():
        raise FileNotFoundError(
            f"Expected a ComfyUI folder (it holds comfy/sd.py), found {given!r}: set COMFYUI_PATH."
        )
    sys.path.insert(0, str(given))
    arguments, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else [])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = arguments
    return Path(given)


def tokenizer() -> Any:
    """The host's SD1 tokenizer (call `use_host` first)."""
    from comfy.sd1_clip import SD1Tokenizer

    return SD1Tokenizer()
