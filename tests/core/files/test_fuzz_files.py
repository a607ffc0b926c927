"""Damaged model and embeds files: each is refused with its name, in bounded time and memory.

The whole of it, with every byte of every header changed in turn: add `-m "slow or not slow"`.
"""

from __future__ import annotations

import io
import json
import random
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.models.adapters import flat, synthetic_adapter
from support.references.bounds import MEASURES_MEMORY, forget_peak, peak

from ipadapter.adapters.adapter import Adapter
from ipadapter.adapters.checkpoint import read_checkpoint
from ipadapter.adapters.families import Family
from ipadapter.adapters.prompt import ImagePrompt
from ipadapter.adapters.vision import EmbedSource
from ipadapter.library.scan import read_contents
from ipadapter.pictures.embeds import ImageEmbeds, load_embeds, save_embeds

SECONDS = 3.0  # of processor time, per file
SLACK = 16 << 20  # bytes that any case may take, whatever its file's size
SPECIAL = (0x00, 0xFF, ord("9"), ord('"'))
TINY = synthetic_adapter(Family.STANDARD, "SD1.5", tiny=True, device="cpu")

Use = Callable[[Path], object]


def use_adapter(path: Path) -> None:
    """All that a graph does with an adapter's file."""
    read_contents(path)
    adapter = Adapter.from_checkpoint(read_checkpoint(path))
    with torch.inference_mode():
        tokens = adapter.projector(torch.zeros(1, adapter.spec.embed_dim))
        for _ in adapter.key_values(ImagePrompt(tokens, tokens)):
            pass


def write_safetensors(path: Path) -> Use:
    save_file(flat(TINY), path, {"author": "someone"})
    return use_adapter


def write_zip(path: Path) -> Use:
    torch.save(TINY, path)
    return use_adapter


def write_legacy(path: Path) -> Use:
    torch.save(TINY, path, _use_new_zipfile_serialization=False)
    return use_adapter


def write_embeds(path: Path) -> Use:
    save_embeds(ImageEmbeds(torch.ones(2, 64), EmbedSource.POOLED), path).replace(path)
    return load_embeds


def write_old_embeds(path: Path) -> Use:
    torch.save(torch.ones(2, 64), path)
    return load_embeds


def write_legacy_embeds(path: Path) -> Use:
    torch.save(torch.ones(2, 64), path, _use_new_zipfile_serialization=False)
    return load_embeds


KINDS: dict[str, Callable[[Path], Use]] = {
    "adapter.safetensors": write_safetensors,
    "adapter.bin": write_zip,
    "legacy.bin": write_legacy,
    "embeds.ipadpt.safetensors": write_embeds,
    "old.ipadpt": write_old_embeds,
    "legacy.ipadpt": write_legacy_embeds,
}


class Bounds:
    """Counts the cases and keeps the worst of them."""

    def __init__(self) -> None:
        self.cases = self.refused = self.most = 0
        self.slowest = 0.0
        self.name = ""
        self.measures_memory = MEASURES_MEMORY

    def check(self, path: Path, use: Use, what: str) -> None:
        """Use a file; only the errors that the pack promises may come, soon and without bulk."""
        before, started, self.name = 0, time.process_time(), path.name
        if self.measures_memory:
            forget_peak()
            before = peak()[0]
        try:
            use(path)
        except (ValueError, FileNotFoundError) as error:
            self.refused += 1
            if path.name not in str(error):
                raise AssertionError(f"{what} is not named: {error}") from error
        except Exception as error:  # none may come: tell in which case one did
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        seconds = time.process_time() - started
        held = peak()[1] - before if self.measures_memory else 0
        self.cases += 1
        self.slowest, self.most = max(seconds, self.slowest), max(held, self.most)
        assert seconds < SECONDS, f"{what}: {seconds:.1f} s"
        assert held < 4 * path.stat().st_size + SLACK, f"{what}: {held >> 20} MB"

    def __str__(self) -> str:
        return (
            f"{self.cases} damaged {self.name}, {self.refused} refused; "
            f"slowest {self.slowest:.2f} s, largest {self.most / (1 << 20):.1f} MB"
        )


@pytest.fixture
def bounds(record_property: Callable[[str, object], None]) -> Iterator[Bounds]:
    bounds = Bounds()
    yield bounds
    record_property("measured", str(bounds))


def structure(content: bytes) -> list[int]:
    """Offsets of bytes that are no weights: header, pickle, zip directory."""
    if content[4:9] == b"\0\0\0\0{":
        return list(range(8 + struct.unpack("<Q", content[:8])[0]))
    if not content.startswith(b"PK"):
        return [*range(min(4000, len(content))), *range(max(0, len(content) - 600), len(content))]
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        start, length = packed.start_dir, packed.infolist()[0].file_size
    return [*range(length + 200), *range(start, len(content))]


def cuts(content: bytes) -> Iterable[int]:
    """Lengths at which a file may end."""
    edge = structure(content)[-1]
    near = (edge + shift for shift in (-8, -1, 0, 1, 2, 9))
    parts = (len(content) * part // 16 for part in range(1, 16))
    return sorted({*range(18), *near, *parts, len(content) - 1})


def damaged(content: bytes, offsets: Iterable[int], values: Iterable[int]) -> Iterator[tuple]:
    """(what, content) with one byte changed at a time."""
    for offset in offsets:
        for value in values:
            if content[offset] != value:
                yield f"byte {offset} = {value}", bytes_with(content, offset, value)


def bytes_with(content: bytes, offset: int, value: int) -> bytes:
    return content[:offset] + bytes([value]) + content[offset + 1 :]


def check_all(
    bounds: Bounds, path: Path, use: Use, cases: Iterable[tuple[str, bytes]], whole: bytes
) -> None:
    for what, content in cases:
        path.write_bytes(content)
        bounds.check(path, use, f"{path.name}, {what}")
    path.write_bytes(whole)
    use(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_may_end_anywhere(tmp_path: Path, kind: str, bounds: Bounds) -> None:
    path = tmp_path / kind
    use = KINDS[kind](path)
    whole = path.read_bytes()
    cases = ((f"{length} bytes", whole[:length]) for length in cuts(whole) if length < len(whole))
    check_all(bounds, path, use, cases, whole)
    assert bounds.refused == bounds.cases


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes(tmp_path: Path, kind: str, bounds: Bounds) -> None:
    path = tmp_path / kind
    use = KINDS[kind](path)
    whole = path.read_bytes()
    chosen = random.Random(1).sample(structure(whole), 40)
    check_all(bounds, path, use, damaged(whole, chosen, SPECIAL), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_changed(tmp_path: Path, kind: str, bounds: Bounds) -> None:
    path = tmp_path / kind
    use = KINDS[kind](path)
    whole = path.read_bytes()
    check_all(bounds, path, use, damaged(whole, structure(whole), SPECIAL), whole)


def header_file(header: object, data: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def with_entry(**changes: object) -> bytes:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}
    names = ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight")
    return header_file({name: entry for name in names}, 16)


ABSURD_HEADERS = {
    "a length of 2**63": struct.pack("<Q", 1 << 63) + b"{}" * 9,
    "a length beyond the file": struct.pack("<Q", 90_000_000) + b"{}" * 9,
    "nested without end": header_file(b'{"a":' + b"[" * 200_000),
    "an integer without end": header_file(b'{"a":' + b"9" * 200_000 + b"}"),
    "a list": header_file([1, 2]),
    "text that is no UTF-8": header_file(b'{"\xff": 1}'),
    "metadata of another type": header_file({"__metadata__": [1]}),
    "metadata that is null": header_file({"__metadata__": None}),
    "metadata of lists": header_file({"__metadata__": {"format": [1], "weight": {}}}),
    "an entry that is null": header_file({"image_proj.x": None}),
    "no shape at all": with_entry(shape=[], data_offsets=[0, 4]),
    "a shape of text": with_entry(shape=["4"]),
    "a shape of null": with_entry(shape=None),
    "a shape of fractions": with_entry(shape=[4.0]),
    "a shape of 2**62": with_entry(shape=[1 << 62, 4]),
    "a shape of zeros": with_entry(shape=[0, 1 << 62], data_offsets=[0, 0]),
    "a shape of 100000 axes": with_entry(shape=[1] * 100_000, data_offsets=[0, 4]),
    "offsets the wrong way": with_entry(data_offsets=[16, 0]),
    "offsets below zero": with_entry(data_offsets=[-16, 0]),
    "offsets of infinity": with_entry(data_offsets=[0, float("inf")]),
    "offsets of NaN": with_entry(data_offsets=[float("nan"), 16]),
    "offsets beyond the file": with_entry(data_offsets=[1 << 60, (1 << 60) + 16]),
    "three offsets": with_entry(data_offsets=[0, 8, 16]),
    "two tensors in one place": with_entry(),
    "an unknown precision": with_entry(dtype="F32_X"),
    "a precision without a number": with_entry(dtype="F"),
    "a precision that is no text": with_entry(dtype=32),
}


@pytest.mark.parametrize("kind", ["adapter.safetensors", "embeds.ipadpt.safetensors"])
def test_absurd_headers(tmp_path: Path, kind: str, bounds: Bounds) -> None:
    path = tmp_path / kind
    use = KINDS[kind](path)
    check_all(bounds, path, use, ABSURD_HEADERS.items(), path.read_bytes())
    assert bounds.refused == bounds.cases


def saved(value: object, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def compressed(content: bytes) -> bytes:
    """The same zip with its members deflated, and a pickle of 64 MB of nothing."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", 8) as new:
        for name in old.namelist():
            bulk = b"0" * (64 << 20) if name.endswith("data.pkl") else b""
            new.writestr(name, old.read(name) + bulk)
    return stream.getvalue()


def absurd_pickles() -> dict[str, bytes]:
    one = torch.zeros(1)
    wide = one.expand(1 << 33)
    nested: dict = {}
    for _ in range(300):
        nested = {"image_proj": nested}
    huge = one.as_strided((1 << 20, 1 << 20), (0, 0))
    layers = {"1.to_k_ip.weight": huge, "1.to_v_ip.weight": huge}
    return {
        "a tensor of 2**33 numbers in 4 bytes": saved({"image_proj": {"proj.weight": wide}}),
        "the same in the old format": saved({"image_proj": {"proj.weight": wide}}, False),
        "the same as embeds": saved(wide.view(1, -1)),
        "the same as embeds in the old format": saved(wide.view(1, -1), False),
        "layers of 2**40 numbers in 4 bytes": saved({**TINY, "ip_adapter": layers}),
        "a compressed bomb": compressed(saved(TINY)),
        "an empty dict": saved({}),
        "a number": saved(3),
        "nested deep": saved(OrderedDict(nested)),
        "numbers for tensors": saved({"image_proj": 1, "ip_adapter": {"1.to_k_ip.weight": 2}}),
        "no shape at all": saved({"image_proj": {"proj.weight": torch.tensor(1.0)}}),
        "a sparse tensor": saved(torch.eye(3).to_sparse()),
        "a tensor on no device": saved(torch.zeros(2, 4, device="meta")),
        "complex numbers": saved(torch.zeros(2, 4, dtype=torch.complex64)),
        "whole numbers": saved(torch.zeros(2, 4, dtype=torch.int64)),
        "brackets only": b"\x80\x02" + b"]" * 5000,
        "a pickle that pops nothing": b"\x80\x020.",
        "a zip of nothing": b"PK\x05\x06" + bytes(18),
    }


@pytest.mark.parametrize("kind", ["adapter.bin", "legacy.bin", "old.ipadpt", "legacy.ipadpt"])
def test_absurd_pickles(tmp_path: Path, kind: str, bounds: Bounds) -> None:
    path = tmp_path / kind
    use = KINDS[kind](path)
    check_all(bounds, path, use, absurd_pickles().items(), path.read_bytes())
    assert bounds.refused == bounds.cases


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_and_embeds_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "embeds.ipadpt.safetensors"
    write_embeds(path)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", bad))
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_embeds(path)
    for key in flat(TINY):
        state = {**flat(TINY), key: torch.full_like(flat(TINY)[key], bad)}
        save_file(state, tmp_path / "adapter.safetensors")
        with pytest.raises(ValueError, match=r"adapter\.safetensors.* has NaN or infinite"):
            use_adapter(tmp_path / "adapter.safetensors")
