"""The pages that the browser tests open: the host's own, and a newer one from the package index."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .server import script

PACKAGE = "comfyui-frontend-package"
NEWER = "1.58.1"
STATIC = "comfyui_frontend_package/static/"


class FetchError(Exception):
    """The page cannot be downloaded."""


def newer_page() -> Path:
    """The folder of the newer page, which the server's --front-end-root takes.

    IMAGE_PROMPT_PAGE chooses it: a folder, a version, or "latest".
    """
    chosen = os.environ.get("IMAGE_PROMPT_PAGE", NEWER)
    folder = Path(chosen).expanduser()
    if (folder / "index.html").is_file():
        return folder.resolve()
    cached = script("tools.environment").cache_folder() / f"page-{chosen}"
    if chosen == "latest" or not cached.is_dir():
        return _fetched(PACKAGE if chosen == "latest" else f"{PACKAGE}=={chosen}")
    return cached


def _fetched(requirement: str) -> Path:
    cache = script("tools.environment").cache_folder()
    with tempfile.TemporaryDirectory(dir=cache, prefix="page-") as scratch:
        download = ["-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch, requirement]
        told = subprocess.run(
            [sys.executable, *download], capture_output=True, text=True, check=False
        )
        if told.returncode:
            raise FetchError(f"{requirement} cannot be downloaded: {told.stderr.strip()[-300:]}")
        (wheel,) = Path(scratch).glob("*.whl")
        folder = cache / f"page-{wheel.name.split('-')[1]}"
        if not folder.is_dir():
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith(STATIC)]
                archive.extractall(scratch, names)
            (Path(scratch) / STATIC).rename(folder)
    return folder
