"""File names that come from outside: kept inside their folder, numbered, written whole."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import Problem

# Device names that Windows reserves in every folder, whatever the extension.
RESERVED = r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)"
LONGEST = 200  # bytes, which leaves room for a number and an extension
FORBIDDEN = r'[<>:"|?*\x00-\x1f]'


def inside(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`, symbolic links resolved.

    ValueError for a name that leads elsewhere, or that another operating system reads otherwise:
    absolute, with "..", through a link to the outside, or reserved on Windows. The same names are
    good on every system, so that a workflow made on one runs on the other.
    """
    root = Path(folder).resolve()
    path = below(root, name).resolve()
    if not path.is_relative_to(root):
        raise Problem.BAD_NAME(f'"{name}" is a link out of its folder. Give a name below {folder}.')
    return path


def below(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`, for reading: links that the owner of the folder made are
    followed. ValueError as `inside` has it, for the name alone."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
        raise Problem.BAD_NAME(f'"{name}" leads out of its folder. Give a name below {folder}.')
    if not parts:
        raise Problem.BAD_NAME("Expected a file name, got an empty one.")
    for part in parts:
        _check_part(part, name)
    return Path(folder).joinpath(*parts)


def write_numbered(stem: Path, suffix: str, write: Callable[[Path], object]) -> Path:
    """Let `write` make a new file and give it the next free number: `stem_00001_` and so on.

    The file appears whole or not at all, and nothing that exists is overwritten, even if two
    processes save at once.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{stem.name}", suffix=".part", dir=stem.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        target = _reserve(stem, suffix)
        try:
            Path(temporary).chmod(target.stat().st_mode)
            Path(temporary).replace(target)
        except OSError:
            target.unlink()
            raise
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _check_part(part: str, name: str) -> None:
    if re.search(FORBIDDEN, part) or part.endswith((" ", ".")):
        raise Problem.BAD_NAME(
            f'"{name}" is not a name that every system allows: "{part}" has a character such as '
            '< > : " | ? *, or ends in a dot or a space.'
        )
    if len(part.encode()) > LONGEST:
        raise Problem.BAD_NAME(
            f'"{part[:40]}..." is longer than the {LONGEST} bytes a name may have.'
        )
    if re.fullmatch(RESERVED, part.split(".")[0].strip(), re.IGNORECASE):
        raise Problem.BAD_NAME(
            f'"{name}" uses "{part}", a name that Windows reserves. Take another.'
        )


def _reserve(stem: Path, suffix: str) -> Path:
    """Create the first numbered file after those that exist, empty."""
    pattern = re.escape(stem.name) + r"_(\d+)_" + re.escape(suffix)
    taken = [re.fullmatch(pattern, entry, re.IGNORECASE) for entry in os.listdir(stem.parent)]
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        target = stem.parent / f"{stem.name}_{number:05}_{suffix}"
        try:
            target.touch(exist_ok=False)
        except FileExistsError:
            continue
        return target
