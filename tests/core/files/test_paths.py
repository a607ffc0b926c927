"""Names from outside stay inside; numbered files appear whole and never replace another."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipadapter.files.paths import inside, write_numbered


def test_names_below_the_folder_are_found(tmp_path: Path) -> None:
    assert inside(tmp_path, "a.ipadpt") == tmp_path.resolve() / "a.ipadpt"
    assert inside(tmp_path, "faces/anna 1.ipadpt") == tmp_path.resolve() / "faces" / "anna 1.ipadpt"
    assert inside(tmp_path, "faces\\anna") == tmp_path.resolve() / "faces" / "anna"
    assert inside(tmp_path, "./..a/b..c") == tmp_path.resolve() / "..a" / "b..c"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "..",
        "a\\..\\..\\x",
        "/etc/passwd",
        "C:\\x",
        "C:x",
        "\\\\host\\share\\x",
    ],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out of its folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["", ".", "a\0b", "ab:c", "what?", "x/con", "NUL.txt", "lpt1", "a. "]
)
def test_names_that_not_every_system_allows_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name|reserves|empty one"):
        inside(tmp_path, name)


def test_very_long_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is longer than the 200 bytes"):
        inside(tmp_path, "x" * 201)


def test_links_to_the_outside_are_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    (folder / "real").mkdir(parents=True)
    outside.mkdir()
    try:
        (folder / "link").symlink_to(outside, target_is_directory=True)
        (folder / "alias").symlink_to(folder / "real", target_is_directory=True)
        (tmp_path / "entry").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets no ordinary user make links")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        inside(folder, "link/x")
    assert inside(folder, "alias/x") == (folder / "real" / "x").resolve()
    assert inside(tmp_path / "entry", "x") == (folder / "x").resolve()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(alphabet="ab./\\:~ \0", max_size=12))
def test_any_name_stays_inside_or_is_refused(tmp_path: Path, name: str) -> None:
    try:
        path = inside(tmp_path, name)
    except ValueError:
        return
    assert path != tmp_path.resolve() and tmp_path.resolve() in path.parents


def test_files_are_numbered_and_never_replaced(tmp_path: Path) -> None:
    stem = tmp_path / "new" / "embeds"
    paths = [write_numbered(stem, ".bin", lambda path: path.write_text("x")) for _ in "ab"]
    assert [path.name for path in paths] == ["embeds_00001_.bin", "embeds_00002_.bin"]
    (stem.parent / "embeds_00041_.bin").write_text("mine")
    (stem.parent / "embeds_x_00099_.bin").write_text("another stem")
    assert write_numbered(stem, ".bin", lambda path: None).name == "embeds_00042_.bin"
    assert (stem.parent / "embeds_00041_.bin").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_numbered(tmp_path / "x", ".bin", fail)
    assert list(tmp_path.iterdir()) == []


def test_simultaneous_writers_get_different_numbers(tmp_path: Path) -> None:
    def save(text: str) -> Path:
        return write_numbered(tmp_path / "x", ".txt", lambda path: path.write_text(text))

    texts = [str(index) for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, texts))
    assert len(set(paths)) == 40
    assert [path.read_text() for path in paths] == texts


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    written = write_numbered(tmp_path / "x", "", lambda path: None)
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode
