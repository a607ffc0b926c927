"""Where an adapter's tensors lie in a file, whoever saved it: found by key names alone.

Official files have `image_proj.*` and `ip_adapter.{1,3,5...}.to_k_ip.weight` (0, 1, 2 for
transformers). What a training or diffusers saves has the same tensors under the names of the base's
own modules, among its weights, below the names of wrappers; so have those of XLabs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SIGNS = ("to_k_ip", "ip_adapter_double_stream_k", "ip_adapter_proj_model")
_PROJECTORS = ("image_proj", "image_proj_model")
_LAYERS = ("ip_adapter", "adapter_modules")

# Modules that only wrap another one: distributed, compiled, sharded, checkpointed.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module)\."
)
_PROJECTOR = re.compile(r"(?:.*\.)?(?:image_proj|image_proj_model|ip_adapter_proj_model)\.(.+)")
_HIDDEN_PROJECTOR = re.compile(
    r"(?:.*\.)?encoder_hid_proj\.(?:image_projection_layers\.(\d+)\.)?(.+)"
)
_NUMBERED = re.compile(r"(?:.*\.)?(?:ip_adapter|adapter_modules)\.(\d+\..+)")
_BLOCK = (
    r"(?:.*\.)?((?:down_blocks|up_blocks|mid_block)(?:\.\d+)?\.attentions\.\d+\."
    r"transformer_blocks\.\d+)\.attn([12])\."
)
_PROCESSOR = re.compile(_BLOCK + r"processor\.(to_\w+)(?:\.(\d+))?\.(.+)")
_XLABS = re.compile(
    r"(?:.*\.)?double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(.+)"
)
# A FaceID adapter's LoRA after diffusers has put it into the UNet.
_INJECTED_LORA = re.compile(_BLOCK + r"(to_[qkv]|to_out)(?:\.0)?\.lora_([AB])\.faceid_(\d+)\.(.+)")
_SECTIONS = ("down_blocks", "up_blocks", "mid_block")  # in the order of diffusers' attn_processors


@dataclass(frozen=True)
class Halves:
    """An adapter's two halves: {official key: key in the file}, the projector's without its prefix.

    clash: two keys of the file that stand for the same tensor, if it holds several adapters.
    """

    projector: Mapping[str, str]
    layers: Mapping[str, str]
    clash: tuple[str, str] | None = None


def halves(keys: Iterable[str]) -> Halves:
    """Find the projector and the layers among a file's keys; empty where there are none."""
    keys = list(keys)
    projector: dict[str, str] = {}
    layers: dict[str, str] = {}
    for key in keys:
        root, _, name = key.partition(".")
        if root in _LAYERS:
            layers[name] = key
        elif root in _PROJECTORS:
            projector[name] = key
    official = projector and any(key[:1].isdigit() for key in layers)
    if official or not any(sign in key for key in keys for sign in _SIGNS):
        return Halves(projector, layers)
    found = _searched({_WRAPPERS.sub("", key): key for key in keys})
    return found if found.layers else Halves(found.projector, layers, found.clash)


def xlabs_name(key: str) -> str:
    """XLabs' name of a tensor under its official one, `image_proj.*` or `ip_adapter.*`; the inverse
    of what `halves` finds."""
    half, _, name = key.partition(".")
    if half == "image_proj":
        return f"ip_adapter_proj_model.{name}"
    number, part, end = name.split(".")
    letter = part.split("_")[1]
    return f"double_blocks.{number}.processor.ip_adapter_double_stream_{letter}_proj.{end}"


class _Found(dict[str, str]):
    """{official key: key in the file}, and the first two keys that mean the same."""

    clash: tuple[str, str] | None = None

    def add(self, official: str, key: str) -> None:
        if official in self and not self.clash:
            self.clash = self[official], key
        self.setdefault(official, key)


def _searched(keys: Mapping[str, str]) -> Halves:
    """The halves below any prefix. keys: {key without wrappers: key in the file}."""
    projector, hidden, numbered = _Found(), _Found(), _Found()
    named: dict[str, tuple[str, int, str]] = {}
    for name, key in keys.items():
        if match := _PROJECTOR.fullmatch(name):
            projector.add(match[1], key)
        elif match := _HIDDEN_PROJECTOR.fullmatch(name):
            hidden.add(match[2], key)
        elif match := _NUMBERED.fullmatch(name):
            numbered.add(match[1], key)
        elif match := _XLABS.fullmatch(name):
            numbered.add(f"{match[1]}.to_{match[2]}_ip.{match[3]}", key)
        elif match := _PROCESSOR.fullmatch(name):
            named[key] = match[1], int(match[2]), f"{match[3]}.{match[5]}"
        elif match := _INJECTED_LORA.fullmatch(name):
            end = {"A": "down", "B": "up"}[match[4]]
            named[key] = match[1], int(match[2]), f"{match[3]}_lora.{end}.{match[6]}"
    # Training saves the same layers twice, and a UNet may have a text projection of that name.
    first, second = projector or hidden, numbered or _by_position(named)
    return Halves(first, second, first.clash or second.clash)


def _by_position(named: Mapping[str, tuple[str, int, str]]) -> _Found:
    """Number layers that are called by their place. named: {key in the file: (transformer block,
    1 for self-attention and 2 for cross-attention, name in the processor)}."""
    blocks = sorted({block for block, _, _ in named.values()}, key=_position)
    first_id = {block: 2 * number for number, block in enumerate(blocks)}
    found = _Found()
    for key, (block, attention, name) in named.items():
        found.add(f"{first_id[block] + attention - 1}.{name}", key)
    return found


def _position(block: str) -> tuple[int, ...]:
    section = _SECTIONS.index(block.partition(".")[0])
    return section, *(int(number) for number in re.findall(r"\d+", block))
