"""What the encoders made, on disk: whole, found again, never taken for something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ipadapter.training.data import Prompts, Samples, TrainingSet
from ipadapter.training.folder import read_folder
from ipadapter.training.store import Row, Store, StoredSet, digest_of, fingerprint


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    store, tensors = Store(tmp_path), {"a": rand(2, 3), "b": rand(1).bfloat16()}
    key = digest_of("a")
    assert not store.has(key)
    store.put(key, tensors)
    found = store.get(key)
    assert store.has(key) and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert store.shape(key, "a") == (2, 3)


def test_a_cut_entry_is_made_again_and_named_where_it_is_read(tmp_path: Path) -> None:
    store, key = Store(tmp_path), digest_of("cut")
    store.put(key, {"a": rand(100)})
    store.path(key).write_bytes(store.path(key).read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{key}.safetensors cannot be read"):
        store.get(key)
    assert not store.has(key) and not store.path(key).exists()
    with pytest.raises(ValueError, match="cannot be read.*Run the node again"):
        store.get(key)


def test_a_full_disk_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ipadapter.training.store.save_file", full)
    with pytest.raises(ValueError, match="No space left.*keep_encoded"):
        Store(tmp_path).put(digest_of("a"), {"a": rand(2)})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_only_what_is_missing_is_made_a_few_at_a_time(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []
    keys = [digest_of(name) for name in "abcadeb"]
    store.put(keys[1], {"n": torch.tensor([1])})

    def make(numbers: list[int]) -> list[dict[str, Tensor]]:
        calls.append(numbers)
        if 5 in numbers and len(calls) == 2:
            raise KeyboardInterrupt  # as when the program is ended
        return [{"n": torch.tensor([number])} for number in numbers]

    with pytest.raises(KeyboardInterrupt):
        store.fill(keys, make, 2)
    store.fill(keys, make, 2)
    assert calls == [[0, 2], [4, 5], [4, 5]]
    store.fill(keys, make, 2)
    assert len(calls) == 3
    assert [int(store.get(key)["n"]) for key in keys] == [0, 1, 2, 0, 4, 5, 1]


@pytest.mark.parametrize(
    "other",
    [("x", 1), ("a", 2), ("a", 1, 1), (b"a", 1), ("a1",), (rand(2), 1), ("a", "1")],
    ids=repr,
)
def test_every_part_tells(other: tuple[object, ...]) -> None:
    assert digest_of("a", 1) == digest_of("a", 1) != digest_of(*other)


def test_weights_are_told_by_names_shapes_types_and_values() -> None:
    weights = {"a": rand(2, 3), "b": torch.tensor(1.0)}
    changed = [
        {**weights, "a": weights["a"].T.contiguous()},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"] + torch.eye(2, 3) * 1e-6},
        {"a": weights["a"], "c": weights["b"]},
        {**weights, "c": weights["b"]},
    ]
    assert fingerprint(dict(reversed(weights.items()))) == fingerprint(weights)
    assert fingerprint(weights) not in {fingerprint(other) for other in changed}


def sets(folder: Path, count: int = 5) -> tuple[TrainingSet, StoredSet]:
    """The same samples in memory and on disk; texts of two lengths, vectors as of SDXL,
    guidance as of Flux."""
    store = Store(folder)
    latents, features = rand(count, 4, 8, 8), rand(count, 3, 6, seed=1)
    texts = [rand(1, 4 if n % 2 else 8, 10, seed=n) for n in range(count)]
    empty, vectors, no_vectors = rand(1, 4, 10, seed=9), rand(count, 7, seed=8), torch.zeros(1, 7)
    rows = []
    for n in range(count):
        row = Row(*(digest_of(kind, n) for kind in ("latents", "features", "text")))
        store.put(row.latents, {"latents": latents[n : n + 1]})
        store.put(row.features, {"features": features[n : n + 1].half()})
        store.put(row.text, {"states": texts[n], "vectors": vectors[n : n + 1]})
        rows.append(row)
    states = torch.cat([text.repeat(1, 8 // text.shape[1], 1) for text in texts])
    long, others = empty.repeat(1, 2, 1), {"guidance": torch.tensor([3.5])}
    in_memory = TrainingSet(
        2 * latents,
        features.half().float(),
        torch.zeros(1, 3, 6),
        Prompts(states, long, vectors, no_vectors, others),
    )
    nothing = Prompts(long, long, no_vectors, no_vectors, others)
    stored = StoredSet(
        store, tuple(rows), torch.zeros(1, 3, 6), nothing, lambda latents: 2 * latents
    )
    return in_memory, stored


@pytest.mark.parametrize("numbers", [[3], [0, 4, 4, 1]])
def test_batches_are_those_of_a_set_in_memory(tmp_path: Path, numbers: list[int]) -> None:
    pair: tuple[Samples, Samples] = sets(tmp_path)
    image, text = (torch.tensor([flag(n) for n in numbers]) for flag in (lambda n: n > 2, bool))
    one, two = (found.batch(torch.tensor(numbers), image, text) for found in pair)
    ours, theirs = ({**vars(batch), **batch.others} for batch in (one, two))
    assert ours.pop("others").keys() == theirs.pop("others").keys() == {"guidance"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    in_memory, stored = sets(tmp_path)
    assert len(stored) == len(in_memory) and stored.latent_shape == in_memory.latent_shape
    assert stored.feature_width == in_memory.feature_width
    assert torch.equal(stored.empty_text, in_memory.empty_text) and stored.tells


def picture(path: Path) -> None:
    Image.new("RGB", (9, 6), (255, 0, 0)).save(path)


def test_captions_in_lines_of_json(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    lines = [
        {"file_name": "a.png", "text": " first ", "more": 1},
        {"image": "./b.png", "caption": "second"},
        {"file_name": "c.png", "text": "not this"},
        {"file_name": "elsewhere.png", "text": "a picture that is not here"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metadata.jsonl").write_text(f"\ufeff{text}\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("third")
    assert read_folder(tmp_path).captions == ("first", "second", "third")


@pytest.mark.parametrize(
    "line",
    ["no json", '{"text": "a"}', '{"file_name": "a.png"}', "[1]", '{"file": 1, "text": "a"}'],
)
def test_a_line_that_is_no_caption_is_named(tmp_path: Path, line: str) -> None:
    picture(tmp_path / "a.png")
    good = '{"file_name": "a.png", "text": "a"}'
    (tmp_path / "b.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match="b.jsonl, line 2 is no caption: expected"):
        read_folder(tmp_path)


def test_a_known_folder_is_not_looked_through_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store, opened = tmp_path / "in", Store(tmp_path / "kept"), []
    folder.mkdir()
    for name in "ab":
        picture(folder / f"{name}.png")
    read_folder(folder, store=store)
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or read(path))
    Image.new("RGB", (3, 3)).save(folder / "b.png")
    assert len(read_folder(folder, store=store).paths) == 2
    assert [path.name for path in opened] == ["b.png"]
    (folder / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 of 2 pictures.*a\.png"):
        read_folder(folder, store=store)
