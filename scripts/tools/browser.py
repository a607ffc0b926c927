"""The graph editor in a headless Chromium, for the pictures of the help pages and for tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .comfy_server import ComfyServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
READY = (
    "() => Boolean(window.app?.graph && window.app.extensionManager"
    " && window.LiteGraph?.registered_node_types?.KSampler)"
)


def chromium() -> str | None:
    """The browser's program: CHROMIUM_PATH, or the first one on the path; None if there is none."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def editor_page(
    browser: Any, server: ComfyServer, errors: list[str], vue: bool = False, **options: Any
) -> Iterator[Any]:
    """A fresh page with the editor, which reaches nothing but this machine; with the classic canvas
    or with Nodes 2.0. What goes wrong on it is added to `errors`."""
    settings = {
        "Comfy.TutorialCompleted": True,
        "Comfy.VueNodes.Enabled": vue,
        "Comfy.Locale": "en",
        "Comfy.Workflow.Persist": False,
        # In a small window these lie on the nodes.
        "Comfy.Minimap.Visible": False,
        "Comfy.RightSidePanel.IsOpen": False,
    }
    server.fetch("/api/settings", json.dumps(settings).encode())
    local = (server.url, "data:", "blob:")

    def serve(route: Any) -> None:
        route.continue_() if route.request.url.startswith(local) else route.abort()

    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    context.route("**/*", serve)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(server.url)
        page.wait_for_function(READY)
        yield page
    finally:
        context.close()
