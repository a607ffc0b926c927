"""What the Ray example does without Ray: which jobs there are, and the graphs it queues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.hosts.server import client_module


@pytest.fixture(scope="module")
def farm() -> Any:
    return client_module("ray_farm")


def links(graph: dict[str, Any]) -> set[str]:
    values = [value for node in graph.values() for value in node["inputs"].values()]
    return {value[0] for value in values if isinstance(value, list)}


def test_jobs_have_names_of_their_own(farm: Any, tmp_path: Path) -> None:
    for name in ("cat.png", "cat.jpg", "more/cat.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs = farm.jobs_in(tmp_path)
    assert [job.picture for job in jobs] == ["cat.jpg", "cat.png", "more/cat.png"]
    assert len({job.name for job in jobs}) == 3
    assert all("/" not in job.name and "." not in job.name for job in jobs)


def test_embeds_are_found_again(farm: Any, tmp_path: Path) -> None:
    job = farm.Job("cat-png", "cat.png")
    (tmp_path / "embeds").mkdir()
    assert job.embeds(tmp_path) is None
    (tmp_path / "embeds" / "cat-png_00001_.ipadpt.safetensors").touch()
    (tmp_path / "embeds" / "cat-png2_00001_.ipadpt.safetensors").touch()
    assert job.embeds(tmp_path) == "embeds/cat-png_00001_.ipadpt.safetensors"


def test_graphs_are_whole_and_encode_once(farm: Any) -> None:
    template = farm.read_template(farm.GRAPH)
    encode = farm.encode_graph(template, "cat.png", "cat-png")
    draw = farm.draw_graph(template, "embeds/a.safetensors", "cat-png", "a house")
    assert links(encode) <= encode.keys() and links(draw) <= draw.keys()
    kinds = [node["class_type"] for node in encode.values()]
    assert "KSampler" not in kinds and kinds.count("IPAdapterEncoder") == 1
    drawn = {node["class_type"]: node["inputs"] for node in draw.values()}
    assert "IPAdapterEncoder" not in drawn and "LoadImage" not in drawn
    assert drawn["IPAdapterLoadEmbeds"]["embeds"] == "embeds/a.safetensors"
    assert drawn["SaveImage"]["filename_prefix"] == "cat-png"
    assert next(n["inputs"]["text"] for n in draw.values() if "text" in n["inputs"]) == "a house"
    assert template == farm.read_template(farm.GRAPH)


def test_loaders_of_named_files_are_taken_along(farm: Any) -> None:
    template = farm.read_template(farm.GRAPH)
    number = next(n for n, node in template.items() if "Unified" in node["class_type"])
    template[number] = {"class_type": "IPAdapterModelLoader", "inputs": {"ipadapter_file": "a"}}
    template["eye"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "b"}}
    encode = farm.encode_graph(template, "cat.png", "cat-png")
    assert links(encode) <= encode.keys()
    assert encode["encode"]["inputs"]["clip_vision"] == ["eye", 0]


def test_a_graph_that_draws_from_no_embeds_is_refused(farm: Any) -> None:
    with pytest.raises(Exception, match="has no IPAdapterEmbeds, IPAdapterLoadEmbeds;"):
        farm.read_template(farm.GRAPH.with_name("simple.json"))
