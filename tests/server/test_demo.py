"""The demo's contact sheet, from the trained models on a server of its own."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.hosts.server import link_file, script


@pytest.fixture(scope="module")
def given(demo_server: Any) -> dict[str, Any]:
    """The demo's own pictures, where the server finds them."""
    return script("demo").write_inputs(demo_server.base / "input", arguments())


def arguments(*given: str) -> argparse.Namespace:
    return script("demo").parse(list(given))


def test_image_prompts_come_near_their_picture(demo_server: Any, given: dict[str, Any]) -> None:
    """With the controls: words alone, and an adapter whose numbers are in random order."""
    table = script("demo").measured(demo_server, given, steps=5)
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \|$", table, re.MULTILINE)
    distances = {title: float(distance) for title, distance in rows}
    assert len(distances) == len(script("tools.contact_sheet").controls())
    assert distances["picture only"] < 0.7 * distances["words only"]
    assert distances["picture only"] < 0.7 * distances["K', V' shuffled"]


def test_the_sheet_begins_with_large_pictures(
    demo_server: Any, given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every panel runs; progress is told."""
    demo, sheet, kit = script("demo"), script("tools.contact_sheet"), script("tools.kit").Kit()
    asked = arguments("--steps", "1", "--output", str(tmp_path / "new" / "sheet.png"))
    with Image.open(demo.write_sheet(demo_server, given, kit, asked)) as picture:
        assert picture.width == sheet.COLUMNS * sheet.PANEL + 2 * sheet.MARGIN
        first = picture.crop((0, 0, picture.width, 2 * sheet.PANEL)).getcolors(2**20)
    assert first and len(first) > 1000
    count = sum(isinstance(panel, sheet.Panel) for panel in sheet.panels(kit))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == count
    assert re.match(rf"1 of {count}, about \d+ s left: ", lines[0])
    assert lines[-1].startswith(f"{count} of {count}: ")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folders of a demo that is kept, before its server starts."""
    base = tmp_path_factory.mktemp("kept") / "base"
    script("tools.demo_pages").make_demo_base(base, script("tools.demo_models").demo_models(), True)
    return base


def test_what_is_saved_stays_in_the_demo(kept: Path) -> None:
    cache = script("tools.demo_models").demo_models()
    assert not (kept / "models").is_symlink()
    assert not (kept / "models" / "ipadapter").samefile(cache / "ipadapter")
    for path in (kept / "models" / "ipadapter").iterdir():
        assert not path.samefile(cache / "ipadapter" / path.name)


def test_own_models_are_found_by_what_they_are(tmp_path: Path) -> None:
    kits, models = script("tools.kit"), script("tools.demo_models")
    source = models.demo_models()
    files = {
        "checkpoints": (models.CHECKPOINT, "sub/mine.safetensors"),
        "ipadapter": (models.STANDARD, "prompt.safetensors"),
        "clip_vision": (f"{models.ENCODER}/model.safetensors", "eye.safetensors"),
    }
    for folder, (name, own) in files.items():
        link_file(source / folder / name, tmp_path / folder / own)
    shutil.copy(tmp_path / "clip_vision" / "eye.safetensors", tmp_path / "ipadapter")
    kit = kits.own_kit(tmp_path)
    assert set(kit.names.values()) == {
        "sub/mine.safetensors",
        "prompt.safetensors",
        "eye.safetensors",
    }
    assert kit.side == 512 and not kit.extras
    graph = script("tools.contact_sheet").graph_of(
        next(p for p in script("tools.contact_sheet").panels(kit) if hasattr(p, "model")), 1, kit
    )
    assert models.CHECKPOINT not in str(graph.nodes)
    (tmp_path / "ipadapter" / "prompt.safetensors").unlink()
    with pytest.raises(script("tools.environment").SetUpError, match=r"ipadapter: eye\.safe"):
        kits.own_kit(tmp_path)
    with pytest.raises(script("tools.environment").SetUpError, match=r"expected other\.safe"):
        kits.own_kit(tmp_path, "other.safetensors")


def test_kept_demo_offers_what_runs(kept: Path, demo_server: Any) -> None:
    """Its first template is what the link opens; what needs other models is left out."""
    pages, kit = script("tools.demo_pages"), script("tools.kit").Kit()
    folder = kept / "custom_nodes" / "image-prompt-adapter" / "workflows"
    server = argparse.Namespace(base=kept, info=demo_server.info, url=demo_server.url)
    link = pages.write_templates(server, kit, script("workflow_graphs").graphs())
    assert link.endswith(f"/?template={pages.FIRST}&source=image-prompt-adapter")
    names = {path.stem for path in folder.glob("*.json")}
    described = {
        graph.file
        for graph in script("workflow_graphs").graphs()
        if graph.name not in pages.LEFT_OUT and not graph.base
    }
    assert names == described | {pages.FIRST}
    assert all((folder / f"{name}.jpg").exists() for name in names - {pages.FIRST})


def test_first_graph_runs_and_lies_in_three_groups(demo_server: Any, given: Any) -> None:
    comfy_server, formats = script("tools.comfy_server"), script("tools.workflow_formats")
    pages, kit = script("tools.demo_pages"), script("tools.kit").Kit()
    sections = script("tools.layout").DEMO_SECTIONS
    editor = formats.editor_format(pages.first_graph(kit), demo_server.info, sections)
    titles = [group["title"] for group in editor["groups"]]
    assert titles == ["1 Your picture", "2 Run", "3 Compare"]
    assert len({group["color"] for group in editor["groups"]}) == 3
    graph = formats.to_api(editor, demo_server.info)
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    entry = demo_server.wait(demo_server.queue(graph))
    assert comfy_server.error_of(entry) is None
    assert len(comfy_server.saved_images(entry)) == 2
