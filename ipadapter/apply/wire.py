"""What travels on an IPADAPTER wire: this pack's own adapters, and what other
packs' loaders put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.checkpoint import checkpoint_from_dict
from ..errors import Problem
from ..files.tensors import is_mapping


@dataclass(frozen=True, eq=False)
class LoadedAdapter(Mapping[str, Mapping[str, Any]]):
    """An adapter with what its loader found for it: encoder and face analysis.

    Nodes of other packs take it apart as the nested dict that they know, so it reads as one.
    """

    adapter: Adapter
    clip_vision: Any = None
    insightface: Any = None

    def __getitem__(self, part: str) -> Mapping[str, Any]:
        return self._parts()[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts())

    def __len__(self) -> int:
        return len(self._parts())

    def _parts(self) -> dict[str, dict[str, Any]]:
        return {
            "clipvision": {"file": None, "model": self.clip_vision},
            "ipadapter": {"file": self.adapter.name, "model": self.adapter},
            "insightface": {"provider": None, "model": self.insightface},
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedAdapter:
        """Immutable."""
        return self


def loaded_adapter(value: Any) -> LoadedAdapter:
    """Understand an IPADAPTER payload.

    Accepts an Adapter or a LoadedAdapter of this pack, the raw `{"image_proj", "ip_adapter"}` dict
    of other packs' model loaders, and their dict `{"clipvision", "ipadapter", "insightface"}`.
    """
    if isinstance(value, LoadedAdapter):
        return value
    if isinstance(value, Adapter):
        return LoadedAdapter(value)
    if is_mapping(value) and "ipadapter" in value:
        return _from_foreign_loader(value)
    if is_mapping(value) and "image_proj" in value:
        return LoadedAdapter(_foreign_adapter(value, "the connected IPADAPTER"))
    raise Problem.WRONG_INPUT(
        f"The ipadapter input received a {type(value).__name__}: expected the output of IPAdapter "
        "Model Loader or IPAdapter Unified Loader."
    )


def _from_foreign_loader(value: Mapping[str, Any]) -> LoadedAdapter:
    def part(name: str) -> Mapping[str, Any]:
        return value.get(name) or {}

    raw: Any = part("ipadapter").get("model")
    if raw is None:
        raise Problem.WRONG_INPUT(
            "The connected IPADAPTER pipeline holds no adapter: its loader found none. Pick "
            "another preset, or use IPAdapter Model Loader."
        )
    name = str(part("ipadapter").get("file") or "the connected IPADAPTER")
    foreign = is_mapping(raw) and not isinstance(raw, LoadedAdapter)
    adapter = _foreign_adapter(raw, name) if foreign else loaded_adapter(raw).adapter
    return LoadedAdapter(adapter, part("clipvision").get("model"), part("insightface").get("model"))


def _foreign_adapter(state: Mapping[str, Any], name: str) -> Adapter:
    return Adapter.from_checkpoint(checkpoint_from_dict(state, name))
