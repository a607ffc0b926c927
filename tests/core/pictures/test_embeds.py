"""Combining embeds by their formulas; embeds files of every kind, their checks and refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ipadapter.adapters.families import Family
from ipadapter.adapters.spec import AdapterSpec
from ipadapter.adapters.vision import EmbedSource
from ipadapter.pictures.embeds import (
    SUFFIX,
    AdapterLabel,
    CombineMethod,
    ImageEmbeds,
    as_image_embeds,
    check_belongs,
    combine_embeds,
    combine_image_embeds,
    is_embeds_file,
    load_embeds,
    save_embeds,
)

METHODS = list(CombineMethod)
WIDTHS = (320, 640)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spec_of(family: Family, embed_dim: int, face_dim: int = 0, token_dim: int = 768) -> AdapterSpec:
    return AdapterSpec(family, 4, embed_dim, face_dim, token_dim, token_dim, WIDTHS, False)


STANDARD = spec_of(Family.STANDARD, 1024)
PLUS = spec_of(Family.PLUS, 1280)
FACEID = spec_of(Family.FACEID, 0, 512)
FACEID_PLUS = spec_of(Family.FACEID_PLUS_V2, 1280, 512)
UNNORM = spec_of(Family.PORTRAIT_UNNORM, 0, 512, 2048)

POOLED = ImageEmbeds(
    random(2, 1024),
    EmbedSource.POOLED,
    made_for=AdapterLabel.of(STANDARD, "sd15.safetensors", "ab"),
)
HIDDEN = ImageEmbeds(
    random(1, 257, 1280), EmbedSource.HIDDEN, weight=0.8, made_for=AdapterLabel.of(PLUS, "plus.bin")
)
FACE = ImageEmbeds(None, EmbedSource.FACE, face=random(3, 512))
RAW_FACE = ImageEmbeds(None, EmbedSource.FACE, face=random(1, 512), raw_face=True)
BOTH = ImageEmbeds(random(1, 257, 1280), EmbedSource.FACE_AND_HIDDEN, face=random(1, 512))
PART = replace(HIDDEN, keep=random(1, 257) > 0)
EVERY_KIND = {
    "pooled": POOLED,
    "hidden": HIDDEN,
    "face": FACE,
    "raw face": RAW_FACE,
    "both": BOTH,
    "part of a picture": PART,
}


def naive(images: list[list[float]], method: CombineMethod) -> list[float]:
    """The formulas on lists of numbers."""
    columns = list(zip(*images, strict=True))
    count = len(images)
    if method is CombineMethod.NORM_AVERAGE:
        lengths = [sum(x * x for x in image) ** 0.5 for image in images]
        scaled = [
            [x / length for x in image] for image, length in zip(images, lengths, strict=True)
        ]
        columns = list(zip(*scaled, strict=True))
        return [sum(column) / count * sum(lengths) / count for column in columns]
    return {
        CombineMethod.ADD: [sum(column) for column in columns],
        CombineMethod.SUBTRACT: [c[0] - sum(c[1:]) / (count - 1) for c in columns],
        CombineMethod.AVERAGE: [sum(column) / count for column in columns],
        CombineMethod.MAX: [max(column) for column in columns],
        CombineMethod.MIN: [min(column) for column in columns],
    }[method]


@pytest.mark.parametrize("method", [m for m in METHODS if m is not CombineMethod.CONCAT])
@pytest.mark.parametrize("tokens", [(), (3,)])
def test_combining_follows_the_formulas(method: CombineMethod, tokens: tuple[int, ...]) -> None:
    first, second = random(2, *tokens, 5).double(), random(1, *tokens, 5, seed=1).double()
    combined = combine_embeds([first, second], method)
    assert combined.shape == (1, *tokens, 5)
    images = torch.cat([first, second]).view(3, -1, 5)
    for token in range(images.shape[1]):
        expected = naive(images[:, token].tolist(), method)
        assert torch.allclose(combined.view(-1, 5)[token], torch.tensor(expected).double())


def test_concat_keeps_all_images_in_order() -> None:
    first, second = random(2, 3, 5), random(1, 3, 5, seed=1)
    assert torch.equal(
        combine_embeds([first, second], CombineMethod.CONCAT), torch.cat([first, second])
    )


@pytest.mark.parametrize("method", [m for m in METHODS if m is not CombineMethod.SUBTRACT])
def test_one_image_stays_itself(method: CombineMethod) -> None:
    image = random(1, 4, 6)
    assert torch.allclose(combine_embeds([image], method), image)


def test_norm_average_keeps_a_strong_image_from_outweighing() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    combined = combine_embeds([first, second], CombineMethod.NORM_AVERAGE)
    assert torch.allclose(combined, torch.tensor([[2.5, 2.5]]))
    zeros = combine_embeds([torch.zeros(2, 4)], CombineMethod.NORM_AVERAGE)
    assert torch.equal(zeros, torch.zeros(1, 4))


def test_subtracting_from_nothing_else_is_an_error() -> None:
    with pytest.raises(ValueError, match=r'"subtract" needs something to subtract: got one image'):
        combine_embeds([random(1, 4)], CombineMethod.SUBTRACT)
    with pytest.raises(ValueError, match="got none"):
        combine_embeds([], CombineMethod.ADD)


@pytest.mark.parametrize("method", METHODS)
def test_unequal_sizes_name_both(method: CombineMethod) -> None:
    with pytest.raises(ValueError, match=r"embed1 \(1, 257, 1280\) and embed3 \(1, 577, 1024\)"):
        combine_embeds([random(1, 257, 1280)] * 2 + [random(1, 577, 1024)], method)
    with pytest.raises(ValueError, match=r"cat \(1, 4\) and dog \(1, 5\)"):
        combine_embeds([random(1, 4), random(1, 5)], method, ("cat", "dog"))


def test_whole_embeds_combine_part_by_part() -> None:
    other = ImageEmbeds(random(1, 257, 1280, seed=1), BOTH.source, face=random(1, 512, seed=1))
    combined = combine_image_embeds([BOTH, other], CombineMethod.AVERAGE)
    for name, tensor in combined.tensors().items():
        assert torch.allclose(tensor, (BOTH.tensors()[name] + other.tensors()[name]) / 2)
    with pytest.raises(ValueError, match="embed1 and embed2 cannot be combined: .*ViT-H"):
        combine_image_embeds([POOLED, HIDDEN], CombineMethod.ADD)
    with pytest.raises(ValueError, match="a raw face embedding"):
        combine_image_embeds([FACE, RAW_FACE], CombineMethod.ADD)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_files_give_back_what_was_saved(tmp_path: Path, kind: str) -> None:
    embeds = EVERY_KIND[kind]
    path = save_embeds(embeds, tmp_path / "IP_embeds")
    assert path.name == "IP_embeds_00001_" + SUFFIX and is_embeds_file(path.name)
    loaded = load_embeds(path)
    assert loaded.tensors().keys() == embeds.tensors().keys()
    for name, tensor in embeds.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor)
    assert (loaded.source, loaded.raw_face) == (embeds.source, embeds.raw_face)
    assert (loaded.weight, loaded.made_for) == (embeds.weight, embeds.made_for)
    assert (loaded.keep is None) == (embeds.keep is None)
    assert loaded.keep is None or torch.equal(loaded.keep, torch.as_tensor(embeds.keep))
    assert str(loaded) == str(embeds)


def test_files_say_what_they_hold_in_their_header(tmp_path: Path) -> None:
    with safe_open(save_embeds(POOLED, tmp_path / "x"), "pt") as stored:
        metadata = stored.metadata()
    assert metadata["format"] == "ipadapter_embeds"
    assert metadata["source"] == "image_embeds"
    assert metadata["adapter_name"] == "sd15.safetensors"
    assert metadata["adapter_family"] == "standard"
    assert metadata["adapter_encoder"] == "ViT-H (1024)"
    assert metadata["adapter_num_tokens"] == "4" and metadata["adapter_digest"] == "ab"


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_readers_of_before_refuse_what_they_would_misread(tmp_path: Path, kind: str) -> None:
    with safe_open(save_embeds(EVERY_KIND[kind], tmp_path / "x"), "pt") as stored:
        assert stored.metadata()["version"] == ("2" if EVERY_KIND[kind].keep is not None else "1")


@pytest.mark.parametrize(
    "keep",
    [
        torch.ones(1, 256, dtype=torch.bool),
        torch.ones(2, 257, dtype=torch.bool),
        torch.ones(1, 257),
        torch.zeros(1, 257, dtype=torch.bool),
    ],
    ids=["fewer patches", "more images", "numbers", "nothing"],
)
def test_kept_patches_that_cannot_be_are_refused(tmp_path: Path, keep: Tensor) -> None:
    with pytest.raises(ValueError, match="kept patches"):
        replace(HIDDEN, keep=keep)
    with pytest.raises(ValueError, match="kept patches"):
        replace(POOLED, keep=keep)
    path = save_embeds(PART, tmp_path / "x")
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    save_file({**PART.tensors(), "keep": keep}, path, metadata)
    with pytest.raises(ValueError, match="is damaged: Expected kept patches"):
        load_embeds(path)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_of_a_mix(method: CombineMethod) -> None:
    """Of a row of pictures each keeps its own; a mix keeps what any of them does."""
    other = replace(HIDDEN, keep=torch.arange(257)[None] < 3)
    rows = torch.cat([torch.as_tensor(PART.keep), torch.as_tensor(other.keep)])
    combined = combine_image_embeds([PART, other], method).keep
    expected = rows if method is CombineMethod.CONCAT else (rows[:1] | rows[1:])
    assert torch.equal(torch.as_tensor(combined), expected)
    beside_a_whole = combine_image_embeds([PART, HIDDEN], method).keep
    assert torch.as_tensor(beside_a_whole)[-1].all()
    assert combine_image_embeds([HIDDEN, HIDDEN], method).keep is None


def test_the_last_image_serves_the_rest() -> None:
    two = ImageEmbeds(
        random(2, 3, 8), EmbedSource.HIDDEN, keep=random(2, 3, seed=1) > -2, shows=(True, False)
    )
    more = two.lengthened(4)
    assert more.features is not None and two.features is not None and more.keep is not None
    assert torch.equal(more.features, two.features[[0, 1, 1, 1]])
    assert torch.equal(more.keep, torch.as_tensor(two.keep)[[0, 1, 1, 1]])
    assert more.shows == (True, False, False, False)
    assert two.map(lambda tensor: tensor * 0.5).keep is two.keep


def test_files_keep_their_precision(tmp_path: Path) -> None:
    halved = HIDDEN.map(lambda tensor: tensor.half()[:, ::2])
    loaded = load_embeds(save_embeds(halved, tmp_path / "x"))
    assert loaded.features is not None and loaded.features.dtype == torch.float16


@pytest.mark.parametrize(
    ("tensor", "source"),
    [
        (random(2, 1024), EmbedSource.POOLED),
        (random(1, 257, 1280), EmbedSource.HIDDEN),
        (random(2, 1, 512), EmbedSource.FACE),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_old_files_are_bare_tensors(
    tmp_path: Path, tensor: Tensor, source: EmbedSource, zipped: bool
) -> None:
    path = tmp_path / "old.ipadpt"
    torch.save(tensor, path, _use_new_zipfile_serialization=zipped)
    loaded = load_embeds(path)
    assert loaded.source is source and is_embeds_file(path.name)
    assert torch.equal(next(iter(loaded.tensors().values())).flatten(), tensor.flatten())


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path("owned"), "x"))


def test_bad_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = save_embeds(POOLED, tmp_path / "good").read_bytes()
    save_file({"features": random(1, 4)}, tmp_path / "foreign.ipadpt")
    torch.save({"a": random(1, 4)}, tmp_path / "dict.ipadpt")
    torch.save(random(4), tmp_path / "vector.ipadpt")
    contents = {
        "empty.ipadpt": b"",
        "cut.ipadpt": good[: len(good) // 2],
        "page.ipadpt": b"<!DOCTYPE html><html></html>",
        "evil.ipadpt": pickle.dumps(Malicious(), protocol=2),
        "words.ipadpt": b"hello there, this is no file of ours",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "foreign.ipadpt", "dict.ipadpt", "vector.ipadpt"):
        with pytest.raises(ValueError, match=name):
            load_embeds(tmp_path / name)
    assert not Path("owned").exists()
    with pytest.raises(FileNotFoundError, match="gone"):
        load_embeds(tmp_path / "gone.ipadpt")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "9"},
        {"source": "nonsense"},
        {"weight": "heavy"},
        {"adapter_num_tokens": "some"},
        {"source": "face embedding"},
        {"source": "penultimate_hidden_states"},
    ],
)
def test_damaged_metadata_is_reported(tmp_path: Path, change: dict[str, str]) -> None:
    path = save_embeds(POOLED, tmp_path / "x")
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    save_file(POOLED.tensors(), path, {**metadata, **change})
    with pytest.raises(ValueError, match="is damaged"):
        load_embeds(path)
    save_file(POOLED.tensors(), path, {"format": metadata["format"]})
    with pytest.raises(ValueError, match="is damaged"):
        load_embeds(path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.save(torch.full((1, 1024), float("nan")), tmp_path / "nan.ipadpt")
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_embeds(tmp_path / "nan.ipadpt")


FITTING = [
    (POOLED, STANDARD),
    (HIDDEN, PLUS),
    (FACE, FACEID),
    (BOTH, FACEID_PLUS),
    (RAW_FACE, UNNORM),
]


@pytest.mark.parametrize("index", range(len(FITTING)))
def test_embeds_belong_to_adapters_that_take_them_and_to_no_others(index: int) -> None:
    embeds = FITTING[index][0]
    for other, (_, spec) in enumerate(FITTING):
        if other == index:
            check_belongs(embeds, spec, "adapter.bin", "mine.ipadpt")
            continue
        with pytest.raises(ValueError, match=r"mine\.ipadpt does not belong to adapter\.bin"):
            check_belongs(embeds, spec, "adapter.bin", "mine.ipadpt")


def test_the_refusal_names_both_sides() -> None:
    bigg = ImageEmbeds(random(1, 1280), EmbedSource.POOLED)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_belongs(bigg, STANDARD, "sd15.safetensors", "cat.ipadpt")
    assert "image_embeds of ViT-bigG (1280)" in str(caught.value)
    assert "needs image_embeds of ViT-H (1024)" in str(caught.value)
    with pytest.raises(ValueError, match=r"made for plus\.bin \(Plus for custom UNet"):
        check_belongs(HIDDEN, STANDARD, "sd15.safetensors", "cat.ipadpt")


def test_the_other_base_of_the_same_encoder_is_fine() -> None:
    check_belongs(POOLED, spec_of(Family.STANDARD, 1024, token_dim=2048), "sdxl_vit-h", "cat")


@pytest.mark.parametrize("value", [None, [random(1, 4)], random(4), random(1, 2, 3, 4)])
def test_something_else_is_not_embeds(value: object) -> None:
    with pytest.raises(ValueError, match="neg_embed: expected embeds"):
        as_image_embeds(value, "neg_embed")


def test_parts_must_fit_the_source() -> None:
    with pytest.raises(ValueError, match="must have a face embedding"):
        ImageEmbeds(random(1, 2, 3), EmbedSource.FACE_AND_HIDDEN)
    with pytest.raises(ValueError, match="must not have image features"):
        ImageEmbeds(random(1, 4), EmbedSource.FACE, face=random(1, 512))
    with pytest.raises(ValueError, match="face embedding of 512, got 128"):
        ImageEmbeds(None, EmbedSource.FACE, face=random(1, 128))
    with pytest.raises(ValueError, match="features with 3 axes"):
        ImageEmbeds(random(1, 4), EmbedSource.HIDDEN)
    with pytest.raises(ValueError, match="features with 2 axes"):
        ImageEmbeds(torch.zeros(0, 4), EmbedSource.POOLED)


def test_loading_needs_neither_encoder_nor_face_model(tmp_path: Path, root: Path) -> None:
    """A bare process with the core alone reads a file of the most demanding kind."""
    path = save_embeds(BOTH, tmp_path / "x")
    script = (
        "import importlib.util as u, sys; sys.modules.update(insightface=None, comfy=None);"
        f"s = u.spec_from_file_location('ipadapter', {str(root / 'ipadapter' / '__init__.py')!r},"
        f" submodule_search_locations=[{str(root / 'ipadapter')!r}]);"
        "m = u.module_from_spec(s); sys.modules['ipadapter'] = m; s.loader.exec_module(m);"
        "from ipadapter.pictures.embeds import load_embeds;"
        f"print(len(load_embeds({str(path)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
