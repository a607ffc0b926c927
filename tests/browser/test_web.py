"""The drawn widgets on the real page: classic canvas and Nodes 2.0."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hosts.page import Editor

EDITOR = ".image-prompt-layers svg"
PART = ".image-prompt-layers"


def heights(page: Editor) -> list[float]:
    """Height of every bar, in the drawing's pixels."""
    script = "bars => bars.map(bar => Number(bar.getAttribute('height')))"
    return page.page.eval_on_selector_all(f"{EDITOR} [data-layer] rect", script)


def test_layer_editor_drags(page: Editor, picture: Path) -> None:
    node = page.add("IPAdapterMS")
    assert len(heights(page)) == 11
    assert page.widget(node, "layer_weights") == ""
    page.drag(EDITOR, (3.5 / 11, 0.5), (3.5 / 11, 0.2))
    text = page.widget(node, "layer_weights")
    entries = dict(entry.split(":") for entry in text.split(", "))
    assert len(entries) == 11
    assert 1.3 < float(entries["3"]) < 1.7
    assert set(entries.values()) == {"1", entries["3"]}
    assert page.page.locator("textarea").first.input_value() == text
    page.shoot(picture)
    assert page.problems() == []


def test_layer_editor_paints_and_rests(page: Editor) -> None:
    node = page.add("IPAdapterMS")
    page.drag(EDITOR, (0.5 / 11, 0.84), (10.5 / 11, 0.84))
    assert page.widget(node, "layer_weights") == "0:0"
    page.drag(EDITOR, (6.5 / 11, 0.42), (6.5 / 11, 0.4))
    assert page.widget(node, "layer_weights").startswith("6:")


def test_layer_editor_follows_text(page: Editor) -> None:
    node = page.add("IPAdapterMS")
    page.set_widget(node, "layer_weights", "3:2.5, 6:1")
    tall = [index for index, height in enumerate(heights(page)) if height > 2]
    assert tall == [3, 6]
    page.page.locator("textarea").first.fill("7:1")
    page.settle()
    assert [i for i, height in enumerate(heights(page)) if height > 2] == [7]
    page.set_widget(node, "layer_weights", "3;2.5")
    assert 'no ":"' in page.page.locator(PART).inner_text()
    page.drag(EDITOR, (0.5, 0.5), (0.5, 0.2))
    assert page.widget(node, "layer_weights") == "3;2.5"


def test_long_messages_are_whole(page: Editor, picture: Path) -> None:
    """Inside the node, no word cut off."""
    node = page.add("IPAdapterMS")
    wrong = "the layer that I mean"
    page.set_widget(node, "layer_weights", f"{wrong}:0.123456789")
    said = page.page.locator(f"{PART} > div").last
    assert wrong in said.inner_text()
    page.shoot(picture)
    fits = "one => one.scrollWidth <= one.clientWidth && one.scrollHeight <= one.clientHeight"
    assert said.evaluate(fits)
    inner, outer = said.bounding_box(), page.page.locator(PART).bounding_box()
    assert inner["y"] + inner["height"] <= outer["y"] + outer["height"] + 1
    assert page.problems() == []


def test_layer_editor_presets_and_base(page: Editor, picture: Path) -> None:
    node = page.add("IPAdapterMS")
    menus = page.page.locator(f"{PART} select")
    menus.nth(1).select_option("style and composition")
    assert page.widget(node, "layer_weights") == "3:1, 6:1"
    menus.nth(0).select_option("SD1.5")
    assert len(heights(page)) == 16
    menus.nth(1).select_option("composition")
    assert page.widget(node, "layer_weights") == "4:0.25, 5:1"
    page.shoot(picture)
    page.page.locator(f"{PART} button").click()
    assert page.widget(node, "layer_weights") == ""
    assert len([height for height in heights(page) if height > 2]) == 16


def test_layer_editor_keys(page: Editor) -> None:
    node = page.add("IPAdapterMS")
    page.set_widget(node, "layer_weights", "0:1")
    page.drag(EDITOR, (0.5 / 11, 0.42), (0.5 / 11, 0.42))
    page.set_widget(node, "layer_weights", "0:1")
    for key in ("PageUp", "ArrowUp", "Shift+ArrowUp", "ArrowRight", "ArrowDown"):
        page.page.keyboard.press(key)
    assert page.widget(node, "layer_weights") == "0:1.56, 1:-0.05"


def test_layer_editor_survives_saving(page: Editor) -> None:
    node = page.add("IPAdapterMS", layers_of="SD1.5")
    page.set_widget(node, "layer_weights", "15:0.7, 2:1.25")
    saved = page.saved()
    (stored,) = saved["nodes"]
    assert stored["widgets_values"][-1] == "15:0.7, 2:1.25"
    page.add("IPAdapterWeights")
    page.load(saved)
    assert page.widget(node, "layer_weights") == "15:0.7, 2:1.25"
    assert [index for index, height in enumerate(heights(page)) if height > 2] == [2, 15]
    (queued,) = page.prompt().values()
    assert queued["inputs"]["layer_weights"] == "15:0.7, 2:1.25"
    assert "layer_editor" not in queued["inputs"]


def test_dragged_layers_are_saved_and_queued(page: Editor, picture: Path) -> None:
    """The whole way: a real mouse, a saved file, a page loaded anew, the prompt."""
    page.add("IPAdapterMS")
    page.load(page.saved())
    page.drag(EDITOR, (6.5 / 11, 0.5), (6.5 / 11, 0.1))
    (before,) = page.prompt().values()
    text = before["inputs"]["layer_weights"]
    drawn = heights(page)
    assert "6:" in text
    assert drawn[6] > 1.2 * drawn[5]
    name = f"dragged {'in Nodes 2.0' if page.vue else 'classic'}"
    page.save_as(name)
    page.reload_and_open(name)
    (after,) = page.prompt().values()
    assert after["inputs"]["layer_weights"] == text
    assert page.page.locator("textarea").first.input_value() == text
    assert heights(page) == pytest.approx(drawn, abs=1)
    page.shoot(picture)
    assert page.problems() == []


def test_curve_follows_settings(page: Editor, picture: Path) -> None:
    node = page.add("IPAdapterWeights")
    line = ".image-prompt-curve polyline"
    page.set_widget(node, "frames", 16)
    first = page.page.locator(line).last.get_attribute("points")
    assert len(first.split()) == 16
    assert "16 frames" in page.page.locator(".image-prompt-curve").inner_text()
    page.set_widget(node, "timing", "ease_in_out")
    page.set_widget(node, "add_ending_frames", 4)
    assert len(page.page.locator(line).last.get_attribute("points").split()) == 20
    page.shoot(picture)
    page.set_widget(node, "weights", "one")
    assert "expected numbers" in page.page.locator(".image-prompt-curve").inner_text()
    assert "curve" not in next(iter(page.prompt().values()))["inputs"]
    assert page.problems() == []


def test_wires_have_a_colour(page: Editor) -> None:
    page.add("IPAdapterAdvanced")
    used = """() => {
        const style = getComputedStyle(document.documentElement);
        return [
            app.canvas.default_connection_color_byType.IPADAPTER,
            app.canvas.constructor.link_type_colors.IPADAPTER,
            style.getPropertyValue("--color-datatype-IPADAPTER").trim(),
        ];
    }"""
    assert page.page.evaluate(used) == ["#e08a3c"] * 3


@pytest.mark.parametrize("text", ["one line", "MODEL  SD1.5\n" + "\n".join("abcdefgh")])
def test_result_text_appears(page: Editor, text: str, picture: Path) -> None:
    """A node shows the text of its result."""
    node = page.add("IPAdapterModelLoader")
    page.page.evaluate(
        "([id, text]) => app.graph.getNodeById(id).onExecuted({text: [text]})", [node, text]
    )
    page.settle()
    field = page.page.locator(".image-prompt-text")
    assert field.inner_text() == text
    box = field.bounding_box()
    assert box["height"] >= 16 * len(text.splitlines())
    page.shoot(picture)
    assert page.problems() == []
