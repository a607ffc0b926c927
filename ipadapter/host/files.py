"""Model files: only names that the host's own folder lists offer are ever opened."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..adapter import Adapter
from ..checkpoint import read_checkpoint
from ..errors import Problem

ADAPTERS = "ipadapter"


def register_folders() -> None:
    """Make `models/ipadapter` known, beside any that `extra_model_paths.yaml` named before."""
    folder_paths.add_model_folder_path(ADAPTERS, os.path.join(folder_paths.models_dir, ADAPTERS))
    paths, extensions = folder_paths.folder_names_and_paths[ADAPTERS]
    if not extensions:  # an entry from extra_model_paths.yaml lists every file
        folder_paths.folder_names_and_paths[ADAPTERS] = (
            paths,
            set(folder_paths.supported_pt_extensions),
        )


def adapter_names() -> list[str]:
    """Names for the loader's list, relative to the adapter folders."""
    return folder_paths.get_filename_list(ADAPTERS)


def find(folder: str, name: str) -> Path:
    """The path of a listed model file. Raises FileNotFoundError for anything that is not in the
    list."""
    path = (
        folder_paths.get_full_path(folder, name)
        if name in folder_paths.get_filename_list(folder)
        else None
    )
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(folder))
        raise Problem.FILE_MISSING(
            f"{name} is not in the {folder} folder ({folders}). Put the file there and press R to "
            f"refresh the lists, "
            "or pick another.",
            FileNotFoundError,
        )
    return Path(path)


def load_adapter(name: str) -> Adapter:
    """Open an adapter file: its header and its projector's shapes; layer weights stay on disk."""
    return Adapter.from_checkpoint(read_checkpoint(find(ADAPTERS, name)))


def fingerprint(folder: str, name: str) -> tuple[str, int, int]:
    """Changes when the file does: name, size, time of change."""
    stat = find(folder, name).stat()
    return name, stat.st_size, stat.st_mtime_ns
