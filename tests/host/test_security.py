"""Every string that reaches a file stays inside its folder, and the log tells nothing private."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hosts.scene import Scene, picture
from support.models.unets import TINY_SD15, random_adapter
from support.references.interface import defaults

OUTSIDE = ("secret", "secret.safetensors", "secret.ipadpt")
HOSTILE = [
    "../secret",
    "../secret.safetensors",
    "../secret.ipadpt",
    "../../secret",
    "a/../../secret.ipadpt",
    "..",
    "..\\secret.safetensors",
    "{outside}/secret.safetensors",
    "{outside}/secret.ipadpt",
    "{outside}/secret",
    "C:\\secret.ipadpt",
    "\\\\server\\share\\secret.ipadpt",
    "link/secret.ipadpt",
    "link",
    "con",
    "NUL.safetensors",
    "x\0y",
    "",
]
# The link by itself is a fine start of a name, link_00001_, and its folder is the owner's choice.
HOSTILE_PREFIXES = [name for name in HOSTILE if name != "link"]
LOADERS = {
    "IPAdapterModelLoader": "ipadapter_file",
    "IPAdapterImageEncoderLoader": "clip_vision_name",
    "IPAdapterLoadEmbeds": "embeds",
    "IPAdapterInsightFaceLoader": "model_name",
}
SAVERS = {
    "IPAdapterSaveEmbeds": {"embeds": torch.ones(1, 48)},
    "IPAdapterSave": {
        "ipadapter": random_adapter(TINY_SD15),
        "folder": "output",
        "precision": "fp16",
        "with_training_state": True,
    },
}


@pytest.fixture(scope="module")
def outside(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files beside and around the host's folders, and links from inside to them."""
    outside = tmp_path_factory.mktemp("outside")
    for folder in (outside, host.base, host.base / "models", host.models("insightface")):
        for name in OUTSIDE[1:]:
            torch.save(torch.ones(1, 48), folder / name)
        (folder / "secret").mkdir()
        (folder / "secret" / "config.json").write_text("{}")
        (folder / "secret" / "model.onnx").write_bytes(b"onnx" * 30)
    for root in ("input", "output"):
        try:
            (host.base / root / "link").symlink_to(outside, target_is_directory=True)
        except OSError:
            pytest.skip("this system lets no ordinary user make links")
    return outside


def everything(*roots: Path) -> dict[str, int]:
    """Every file below the roots with the time of its last change."""
    return {
        str(path): path.lstat().st_mtime_ns
        for root in roots
        for path in root.rglob("*")
        if not path.is_dir()
    }


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("node", LOADERS)
def test_names_to_load_stay_inside(host: Any, outside: Path, node: str, name: str) -> None:
    more = {"provider": "CPU"} if node == "IPAdapterInsightFaceLoader" else {}
    name = name.replace("{outside}", str(outside))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        host.call(node, **{LOADERS[node]: name}, **more)
    assert "onnx" not in str(caught.value) or "secret" not in os.path.normpath(name)


@pytest.mark.parametrize("name", HOSTILE_PREFIXES)
@pytest.mark.parametrize("node", SAVERS)
def test_names_to_save_stay_inside(host: Any, outside: Path, node: str, name: str) -> None:
    before = everything(host.base, outside)
    prefix = name.replace("{outside}", str(outside))
    with pytest.raises(ValueError, match="name|link"):
        host.call(node, filename_prefix=prefix, **SAVERS[node])
    assert everything(host.base, outside) == before


def test_a_folder_of_pictures_is_one_of_the_input(host: Any, outside: Path) -> None:
    pictures_of = host.module("ipadapter.host.training.data").pictures_of
    for name in HOSTILE_PREFIXES:
        with pytest.raises((ValueError, FileNotFoundError)):
            pictures_of(None, name.replace("{outside}", str(outside)), "", False)


@pytest.mark.parametrize("node", SAVERS)
def test_saving_never_replaces(host: Any, node: str) -> None:
    root = host.base / ("input" if node == "IPAdapterSaveEmbeds" else "output")
    before: dict[str, int] = {}
    for count in range(1, 4):
        host.call(node, filename_prefix="again/kept", **SAVERS[node])
        files = everything(root / "again")
        assert before.items() <= files.items()
        assert len([path for path in files if path.endswith(".safetensors")]) == count
        assert not [path for path in files if path.endswith(".part")]
        before = files


def test_a_save_that_fails_leaves_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    for name in ("pictures.embeds", "training.folder"):
        monkeypatch.setattr(host.module(f"ipadapter.{name}"), "save_file", full)
    before = everything(host.base)
    for node, inputs in SAVERS.items():
        with pytest.raises((ValueError, OSError), match="No space left"):
            host.call(node, filename_prefix="full", **inputs)
    assert everything(host.base) == before


def test_the_log_tells_nothing_private(
    host: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.build(host, TINY_SD15)
    private = [str(Path.home()), str(host.base), "tensor(", "0x"]
    with caplog.at_level(logging.DEBUG):
        elongated = torch.rand(1, 16, 96, 3, generator=torch.Generator().manual_seed(1))
        scene.sample(scene.apply(image=elongated, attn_mask=torch.ones(1, 8, 8)))
        host.call("IPAdapterSaveEmbeds", embeds=torch.ones(1, 48), filename_prefix="logged")
        host.call("IPAdapterTiled", **tiled(scene))
    ours = [record for record in caplog.records if record.name == "ipadapter"]
    assert [record.levelname for record in ours].count("WARNING") == 1  # the elongated picture
    for record in ours:
        message = record.getMessage()
        assert "\n" not in message
        assert not [text for text in private if text in message], message
    pack = host.pack.__name__
    assert not [record for record in caplog.records if record.name.startswith(pack)]


def tiled(scene: Scene) -> dict[str, Any]:
    return {
        **defaults("IPAdapterTiled"),
        "model": scene.model,
        "ipadapter": scene.adapter,
        "clip_vision": scene.clip_vision,
        "image": picture(1),
    }
