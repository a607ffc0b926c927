"""Presets on transformers find their files by content, and the encoder that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models.adapters import shapes_of
from support.models.modelfiles import ENCODER_FILES, sparse_safetensors
from support.models.modelfolders import Models
from support.models.transformer_adapters import SHAPES_ONLY, published, xlabs
from support.models.transformers import FLUX_DEV

from ipadapter.adapters.families import Family
from ipadapter.errors import plain_text
from ipadapter.library.choose import presets_of
from ipadapter.library.presets import FACEID, OFFICIAL, PLUS, STANDARD

FILES = {
    "x1.safetensors": xlabs(FLUX_DEV, 768, 4, SHAPES_ONLY),
    "sub/x2.safetensors": published()["XLabs"],
    "x3.safetensors": published()["InstantX"],
    "x4.safetensors": published()["InstantX timed"],
}
WANTED = {
    ("Flux.1", STANDARD): ("x1.safetensors", Family.FLUX_XLABS, 1024),
    ("Flux.1", PLUS): ("sub/x2.safetensors", Family.FLUX_XLABS, 1024),
    ("Chroma", STANDARD): ("x1.safetensors", Family.FLUX_XLABS, 1024),
    ("Chroma", PLUS): ("sub/x2.safetensors", Family.FLUX_XLABS, 1024),
    ("SD3.5-Large", PLUS): ("x4.safetensors", Family.SD3_INSTANTX, 1152),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = Models(tmp_path_factory.mktemp("transformers"))
    for name, state in FILES.items():
        path = made.folders["ipadapter"] / name
        path.parent.mkdir(exist_ok=True)
        sparse_safetensors(path, shapes_of(state))
    for number, dims in enumerate([*ENCODER_FILES.values(), (1152, 1152, 378)]):
        made.encoder(f"{number}.safetensors", dims)
    return made


def test_every_preset_is_tried() -> None:
    bases = {base for base, _ in WANTED}
    assert {(base, preset) for base in bases for preset in OFFICIAL[base]} == WANTED.keys()


@pytest.mark.parametrize("base", ["Flux.1", "Chroma"])
def test_where_one_file_is_missing_the_other_is_taken(base: str, tmp_path: Path) -> None:
    """PLUS on Flux is XLabs' second, or InstantX's with its own encoder."""
    models = Models(tmp_path)
    shapes = shapes_of(FILES["x3.safetensors"])
    sparse_safetensors(models.folders["ipadapter"] / "any.bin", shapes)
    models.encoder("siglip.safetensors", (1152, 1152, 378))
    choice = models.choose(PLUS, base)
    assert choice.spec.family is Family.FLUX_INSTANTX and not choice.notes
    assert choice.encoder and choice.encoder.name == "siglip.safetensors"
    assert presets_of(choice.adapter, base) == [PLUS]  # as Doctor lists it


@pytest.mark.parametrize(("base", "preset"), WANTED)
def test_a_preset_finds_its_files(models: Models, base: str, preset: str) -> None:
    name, family, hidden = WANTED[base, preset]
    choice = models.choose(preset, base)
    assert Path(choice.adapter.name) == Path(name) and choice.spec.family is family
    assert choice.encoder and choice.encoder.contents.encoder
    facts = choice.encoder.contents.encoder
    assert facts.hidden == hidden and facts.image_size != 336
    assert not choice.notes and choice.lora is None


def test_without_the_file_it_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Models(tmp_path).choose(PLUS, "Chroma")
    message = plain_text(caught.value)
    assert (
        "XLabs or InstantX for Flux.1" in message
        and "flux-ip-adapter-v2.safetensors (1.06 GB)" in message
    )


def test_a_file_of_the_other_version_is_told(models: Models, tmp_path: Path) -> None:
    other = Models(tmp_path)
    sparse_safetensors(
        other.folders["ipadapter"] / "v1.safetensors", shapes_of(FILES["x1.safetensors"])
    )
    with pytest.raises(FileNotFoundError, match="it has 4 tokens per picture"):
        other.choose(PLUS, "Flux.1")


def test_a_preset_that_transformers_have_not(models: Models) -> None:
    with pytest.raises(ValueError, match=r"the model is Flux\.1\. Presets for Flux\.1: STANDARD"):
        models.choose(FACEID, "Flux.1")
