"""A real browser on the real page of a real server; skipped where no Chromium is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.hosts.front_end import FetchError, newer_page
from support.hosts.page import Editor
from support.hosts.server import ROOT, THREADS, running, script

PICTURES = ROOT / "tests" / "output"


def chromium() -> str:
    """The browser's program."""
    found = script("tools.browser").chromium()
    if not found:
        pytest.skip("needs Chromium; install it or set CHROMIUM_PATH")
    return found


@pytest.fixture(scope="session", params=["own", "newer"])
def newer(request: pytest.FixtureRequest) -> Path | None:
    """The folder of a newer page; None for the host's own."""
    if request.param == "own":
        return None
    try:
        return newer_page()
    except FetchError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(newer: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of the browser tests' own, with the host's page and with a newer one: what others
    leave in its history and folders, broken files and inputs that are no numbers, is not what a
    page should be judged by."""
    with running(tmp_path_factory.mktemp("browser"), page=newer) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that reaches nothing but this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, newer: Path | None) -> Iterator[Any]:
    """A kept demo's server and its link."""
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        pytest.skip("needs COMFYUI_PATH; scripts/test.py sets it")
    pages, base = script("tools.demo_pages"), tmp_path_factory.mktemp("demo") / "base"
    pages.make_demo_base(base, script("tools.demo_models").demo_models(), copied=False)
    asked = script("demo").parse([])
    script("demo").write_inputs(base / "input", asked)
    server = script("tools.comfy_server").ComfyServer(
        Path(sys.executable), Path(host), base, threads=THREADS, page=newer
    )
    with server:
        graphs = script("workflow_graphs").graphs()
        yield server, pages.write_templates(server, script("tools.kit").Kit(), graphs)


@contextmanager
def editor(browser: Any, server: Any, vue: bool) -> Iterator[Editor]:
    """The graph editor on a fresh page, with the classic canvas or with Nodes 2.0."""
    errors: list[str] = []
    view = {"width": 1500, "height": 1000}
    with script("tools.browser").editor_page(browser, server, errors, vue, viewport=view) as page:
        yield Editor(page, errors, vue)


RENDERERS = {"params": [False, True], "ids": ["classic", "nodes2"]}


@pytest.fixture(scope="module", **RENDERERS)
def opened(request: pytest.FixtureRequest, browser: Any, server: Any) -> Iterator[Editor]:
    """A page that a module's tests share, once with the classic canvas and once with Nodes 2.0."""
    with editor(browser, server, request.param) as made:
        yield made


@pytest.fixture(**RENDERERS)
def fresh(request: pytest.FixtureRequest, browser: Any, server: Any) -> Iterator[Editor]:
    """A page of one test's own."""
    with editor(browser, server, request.param) as made:
        yield made


@pytest.fixture
def page(opened: Editor) -> Editor:
    """The `Editor`, empty and without errors."""
    opened.clear()
    return opened


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Path:
    """Where a test puts its screenshot."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    return PICTURES / f"{name.strip('_')}.png"
