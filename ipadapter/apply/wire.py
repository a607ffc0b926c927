"""What travels on an IPADAPTER wire: this pack's own adapters, and what other
packs' loaders put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters.adapter import Adapter
from ..adapters.checkpoint import checkpoint_from_dict
from ..errors import Problem


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
    if isinstance(value, Mapping) and "ipadapter" in value:
        return _from_foreign_loader(value)
    if isinstance(value, Mapping) and "image_proj" in value:
        return LoadedAdapter(_foreign_adapter(value, "the connected IPADAPTER"))
    raise Problem.WRONG_INPUT(
        f"The ipadapter input received a {type(value).__name__}: expected the output of IPAdapter "
        "Model Loader or IPAdapter Unified Loader."
    )


def _from_foreign_loader(value: Mapping[str, Any]) -> LoadedAdapter:
    def model(part: str) -> Any:
        return (value.get(part) or {}).get("model")

    raw = model("ipadapter")
    if raw is None:
        raise Problem.WRONG_INPUT(
            "The connected IPADAPTER pipeline holds no adapter: its loader found none. Pick "
            "another preset, or use IPAdapter Model Loader."
        )
    name = str((value["ipadapter"] or {}).get("file") or "the connected IPADAPTER")
    foreign = isinstance(raw, Mapping) and not isinstance(raw, LoadedAdapter)
    adapter = _foreign_adapter(raw, name) if foreign else loaded_adapter(raw).adapter
    return LoadedAdapter(adapter, model("clipvision"), model("insightface"))


def _foreign_adapter(state: Mapping[str, Any], name: str) -> Adapter:
    return Adapter.from_checkpoint(checkpoint_from_dict(state, name))
