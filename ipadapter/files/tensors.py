"""Model files opened without reading their tensors: keys and shapes now, data when asked for.

The content decides how a file is read, not its extension. Nothing here can run code from a file:
pickles go through torch's weights-only reader.
"""

from __future__ import annotations

import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open

from ..errors import Problem

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# What a safetensors file is, by a word of what its library says of it.
_HEADER_FAULTS = (
    ("headertoo", "is neither a safetensors nor a torch file"),
    ("headerlength", "is truncated: it ends within its header"),
    ("incomplete", "is truncated: its size is not what its header promises"),
    ("", "has a damaged safetensors header"),
)
_NOT_MODELS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the model itself (git clone without git-lfs)",
    ),
    (b"<!doctype html", "a web page, not a model (a download link that led to a page)"),
    (b"<html", "a web page, not a model (a download link that led to a page)"),
    (b"<?xml", "an XML page, not a model (a download link that led to an error page)"),
    (b"{", "a JSON text, not a model (often an error message saved by a download)"),
)
_HUGE = 1 << 30  # bytes from which a torch file is not kept mapped
_FETCH_AGAIN = "Delete it and download it again."
# What torch's reader raises for bytes that are no pickle of weights, or only the half of one.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


class TensorMap(Mapping[str, torch.Tensor]):
    """Tensors by name. Shapes are known at once; a tensor is read when it is looked up."""

    def __init__(self, shapes: Mapping[str, Shape], load: Callable[[str], torch.Tensor]) -> None:
        self._shapes = dict(shapes)
        self._load = load

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> TensorMap:
        """A map over tensors that are already there."""
        held = dict(tensors)
        return cls({key: tuple(value.shape) for key, value in held.items()}, held.__getitem__)

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._shapes:
            raise KeyError(key)
        return self._load(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, key: str) -> Shape:
        """Shape of one tensor; reads no data."""
        return self._shapes[key]

    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor; reads no data."""
        return dict(self._shapes)

    def renamed(self, names: Mapping[str, str]) -> TensorMap:
        """The tensors whose old name is a value of `names`, under their new names (the keys)."""
        return TensorMap(
            {new: self._shapes[old] for new, old in names.items()},
            lambda new: self._load(names[new]),
        )

    def stacked(self, names: Mapping[str, tuple[str, ...]]) -> TensorMap:
        """The tensors named in the values of `names`, under new names (the keys): the rows of
        several, one below the other; all have the same shape."""
        shapes: dict[str, Shape] = {}
        for new, olds in names.items():
            one = list(self._shapes[olds[0]])
            shapes[new] = tuple([len(olds) * one[0], *one[1:]] if len(olds) > 1 else one)

        def load(new: str) -> torch.Tensor:
            parts = [self._load(old) for old in names[new]]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return TensorMap(shapes, load)


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A model file: its tensors under flat keys and its text metadata."""

    tensors: TensorMap
    metadata: Mapping[str, str]


def open_tensor_file(path: Path) -> TensorFile:
    """Open a .safetensors or torch pickle file by what it contains; ValueError if it is neither."""
    path = Path(path)
    if not path.is_file():
        raise Problem.FILE_MISSING(
            f"{path.name}: there is no such file at {path}.", FileNotFoundError
        )
    head = refuse_downloaded_text(path)
    if _begins_safetensors(head):
        return _open_safetensors(path)
    if head[:2] in (b"PK", b"\x80\x02"):
        return _open_pickle(path)
    return _open_safetensors(path)


def refuse_downloaded_text(path: Path) -> bytes:
    """The first bytes of a model file; ValueError if it is empty, a web page or a pointer."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head.strip(b"\0"):
        size = path.stat().st_size
        found = "empty (0 bytes)" if size == 0 else "filled with zeros (an unfinished download)"
        raise Problem.FILE_BROKEN(f"{path.name} is {found}. {_FETCH_AGAIN}")
    if _begins_safetensors(head):
        return head
    for start, meaning in _NOT_MODELS:
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(start):
            raise Problem.FILE_BROKEN(f"{path.name} is {meaning}. {_FETCH_AGAIN}")
    return head


def _begins_safetensors(head: bytes) -> bool:
    """A header length below 4 GB, then JSON; the length itself may begin with any byte."""
    return head[4:9] == b"\0\0\0\0{"


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a value is a dict or the like."""
    return isinstance(value, Mapping)


def flatten(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Nested dicts of tensors as one dict with dotted keys; values that are no
    tensors are left out."""
    flat: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            flat[str(key)] = value
        elif isinstance(value, TensorMap):
            flat.update({f"{key}.{inner}": value[inner] for inner in value})
        elif is_mapping(value):
            prefix = "" if key == "state_dict" else f"{key}."
            flat.update({prefix + inner: tensor for inner, tensor in flatten(value).items()})
    return flat


def _open_safetensors(path: Path) -> TensorFile:
    def load(key: str) -> torch.Tensor:
        with _stored(path) as stored:
            return stored.get_tensor(key)

    with _stored(path) as stored:
        shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118 (no mapping)
        return TensorFile(TensorMap(shapes, load), dict(stored.metadata() or {}))


@contextmanager
def _stored(path: Path) -> Generator[Any, None, None]:
    """A safetensors file, open: its library checks the whole header against the file's size."""
    try:
        opened: Any = safe_open(os.fspath(path), framework="pt", device="cpu")
        with opened as stored:
            yield stored
    except SafetensorError as error:
        words = str(error).lower().replace(" ", "")  # releases differ in spaces and capitals
        found = next(found for sign, found in _HEADER_FAULTS if sign in words)
        reason = str(error).removeprefix("Error while deserializing header: ")[:160]
        raise Problem.FILE_BROKEN(f"{path.name} {found} ({reason}). {_FETCH_AGAIN}") from error


def _open_pickle(path: Path) -> TensorFile:
    try:
        state = _load_weights(path)
        if isinstance(state, torch.Tensor):  # old embeds files are one bare tensor: its key is ""
            state = {"": state}
        tensors = flatten(state) if is_mapping(state) else None
    except pickle.UnpicklingError as error:
        raise Problem.PICKLE_REFUSED(
            f"{path.name} contains Python objects or code, not only weights, and was not loaded "
            f"because such a file can run anything ({_first_line(error)}). Use a .safetensors "
            "version of the model."
        ) from error
    except _DAMAGED as error:
        raise Problem.FILE_BROKEN(
            f"{path.name} is a truncated or damaged torch file ({_first_line(error)}). "
            f"{_FETCH_AGAIN}"
        ) from error
    if tensors is None:
        raise Problem.WRONG_FILE(
            f"{path.name} holds a {type(state).__name__}, expected a dict of tensors."
        )
    for key, tensor in tensors.items():
        _check_stored(path, key, tensor)
    held = TensorMap.of(tensors)
    if path.stat().st_size < _HUGE:
        return TensorFile(held, {})
    # What was read of a mapped file is the process's until nothing of the mapping is in use: each
    # look opens its own.
    return TensorFile(TensorMap(held.shapes(), lambda key: _again(path, key)), {})


def _again(path: Path, key: str) -> torch.Tensor:
    """One tensor of a torch file that was found whole before, in a mapping of its own."""
    state = _load_weights(path)
    return state if isinstance(state, torch.Tensor) else flatten(state)[key]


def _check_stored(path: Path, key: str, tensor: torch.Tensor) -> None:
    """ValueError unless every number of a tensor is in the file: a view can claim any size."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
        return
    raise Problem.FILE_BROKEN(
        f"{path.name} is damaged: '{key}' claims the shape {tuple(tensor.shape)}, which the file "
        f"does not hold. {_FETCH_AGAIN}"
    )


def _load_weights(path: Path) -> Any:
    """The pickled object; in torch's zip format its tensors stay on disk until they are used."""
    mmap = zipfile.is_zipfile(path) or None
    if mmap:
        _refuse_compressed(path)
    if path.suffix.lower() == ".safetensors":  # torch.load would go by the wrong extension
        return _load_under_another_name(path, mmap)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _load_under_another_name(path: Path, mmap: bool | None) -> Any:
    """The same through a link; where none can be made, the whole file is read."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "weights.bin"
        try:
            link.symlink_to(path.resolve())
        except OSError:  # Windows asks for a right that few have
            with path.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
        return torch.load(link, map_location="cpu", weights_only=True, mmap=mmap)


def _refuse_compressed(path: Path) -> None:
    """torch stores its parts as they are; a compressed part can unpack to any size."""
    with zipfile.ZipFile(path) as packed:
        if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
            raise ValueError("its parts are compressed")


def _first_line(error: BaseException) -> str:
    """A short form of a library's message."""
    text = str(error)
    for marker in ("Unsupported global: ", "Unsupported operand "):
        if marker in text:
            text = marker + text.split(marker, 1)[1]
            break
    return text.split("\n", 1)[0].split(" was not an allowed", 1)[0][:160] or type(error).__name__
