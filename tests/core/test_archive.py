"""What the registry ships: every tracked file that .comfyignore does not leave out."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "__init__.py",
    "ipadapter",
    "locales",
    "nodes.py",
    "pyproject.toml",
    "requirements.txt",
    "web",
    "workflows",
}
MOST_BYTES = 4_000_000


def git(*arguments: str, given: str = "") -> str:
    """What git prints; the test is skipped where the repository is not a checkout."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "-C", str(ROOT), *arguments]
    run = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def archive() -> list[Path]:
    """The files of the archive. Patterns of .comfyignore mean what those of .gitignore mean."""
    tracked = git("ls-files")
    ignoring = ("-c", f"core.excludesFile={ROOT / '.comfyignore'}")
    asked = git(*ignoring, "check-ignore", "--no-index", "-v", "--stdin", given=tracked)
    left_out = {
        line.split("\t")[1] for line in asked.splitlines() if ".comfyignore:" in line.split("\t")[0]
    }
    return [Path(name) for name in tracked.splitlines() if name not in left_out]


def test_nothing_but_the_pack_is_shipped(archive: list[Path]) -> None:
    assert {path.parts[0] for path in archive} == SHIPPED


def test_all_of_the_pack_is_shipped(archive: list[Path]) -> None:
    tracked = git("ls-files", "ipadapter", "locales", "web", "workflows/*.json")
    top = {Path(name) for name in tracked.splitlines() if not name.startswith("workflows/api/")}
    assert top
    assert top <= set(archive)


def test_archive_is_small(archive: list[Path]) -> None:
    assert sum((ROOT / path).stat().st_size for path in archive) < MOST_BYTES


def test_shipped_code_is_of_known_kinds(archive: list[Path]) -> None:
    kinds = {path.suffix for path in archive} - {""}
    assert kinds <= {".py", ".js", ".md", ".json", ".toml", ".txt", ".png", ".jpg"}


def test_icon_is_there_and_small() -> None:
    """The registry wants a web address: it is this repository's own file."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (address,) = re.findall(r"^Icon = \"(.+)\"$", text, flags=re.MULTILINE)
    icon = ROOT / address.split("/main/")[1]
    assert icon.stat().st_size < 20_000
