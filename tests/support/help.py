"""What the pages of help and the English locale say of a node, made from its schema.

The tables of web/docs and the whole of locales/en follow the schemas; the prose is by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipadapter.presets import (
    COMMUNITY_PRESETS,
    ENCODER_SOURCES,
    FACEID_PRESETS,
    OFFICIAL,
    UNIFIED_PRESETS,
    Requirement,
)
from ipadapter.spec import Family

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
MADE = ("Files", "Inputs", "Outputs")
ALL_PRESETS = (*UNIFIED_PRESETS, *FACEID_PRESETS, *COMMUNITY_PRESETS)
PRESETS = {
    "IPAdapterUnifiedLoader": UNIFIED_PRESETS,
    "IPAdapterUnifiedLoaderFaceID": FACEID_PRESETS,
    "IPAdapterUnifiedLoaderCommunity": COMMUNITY_PRESETS,
    "IPAdapterModelLoader": ALL_PRESETS,
    "IPAdapterImageEncoderLoader": ALL_PRESETS,
}
VIT_H, VIT_G, VIT_L = (encoder.file for encoder in ENCODER_SOURCES)
FACE_ONLY = (Family.FACEID, Family.PORTRAIT, Family.PORTRAIT_UNNORM)


def inputs_of(info: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """Name, type, options and whether it is optional, of each input in order."""
    for group in ("required", "optional"):
        for name, declared in info["input"].get(group, {}).items():
            kind, options = declared[0], declared[1] if len(declared) > 1 else {}
            yield name, kind, options, group == "optional"


def renewed(text: str, info: dict[str, Any]) -> str:
    """A page with its tables made anew, between its first paragraph and its other sections."""
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    mine = [section for section in sections if section.split("\n")[0].strip() not in MADE]
    made = [files_section(info["name"]), inputs_section(info), outputs_section(info)]
    parts = [head, *filter(None, made), *(f"## {section}" for section in mine)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def inputs_section(info: dict[str, Any]) -> str:
    """Every input: what it means, and its default and range."""
    rows = [
        f"| `{name}`{' (optional)' if optional else ''} | {options.get('tooltip', '')} | "
        f"{_values(kind, options)} |"
        for name, kind, options, optional in inputs_of(info)
    ]
    head = ["## Inputs", "", "| Input | Meaning | Values |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows])


def outputs_section(info: dict[str, Any]) -> str:
    """Every output; empty where there is none."""
    tips = info.get("output_tooltips") or [None] * len(info["output"])
    names = zip(info["output_name"], info["output"], tips, strict=True)
    rows = [f"| `{name}` | {kind} | {tip or ''} |" for name, kind, tip in names]
    head = ["## Outputs", "", "| Output | Type | Meaning |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows]) if rows else ""


def files_section(node_id: str) -> str:
    """Which official file goes where, on the pages of loaders."""
    presets = PRESETS.get(node_id)
    if not presets:
        return ""
    head = [
        "## Files",
        "",
        "Adapters go into `models/ipadapter`, encoders into `models/clip_vision`, LoRAs into "
        "`models/loras`.",
        "",
        "| Preset | Checkpoint | Adapter file | Image encoder | Published in |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = [
        _file_row(preset, base, OFFICIAL[base][preset])
        for preset in presets
        for base in _bases(preset)
    ]
    return "\n".join([*head, *rows])


def _bases(preset: str) -> list[str]:
    bases = [base for base, presets in OFFICIAL.items() if preset in presets]
    return ["Kolors"] if "Kolors" in bases else bases


def _file_row(preset: str, base: str, needed: Requirement) -> str:
    lora = f" with {needed.lora}" if needed.lora else ""
    encoder = encoder_file(needed)
    return f"| {preset} | {base} | {needed.file}{lora} | {encoder} | {needed.source} |"


def encoder_file(needed: Requirement) -> str:
    """The usual name of the encoder that an official file wants."""
    if needed.family in FACE_ONLY:
        return "none: face analysis buffalo_l"
    if needed.family in (Family.KOLORS_PLUS, Family.KOLORS_FACEID_PLUS):
        return VIT_L
    return VIT_G if needed.family is Family.STANDARD and needed.embed_dim == 1280 else VIT_H


def _values(kind: Any, options: dict[str, Any]) -> str:
    if kind == "COMBO":
        if options.get("options") and not _is_files(options["options"]):
            return ", ".join(f"*{value}*" for value in options["options"])
        return "a file"
    if kind in ("INT", "FLOAT"):
        return f"{options['default']} ({options['min']} to {options['max']})"
    if kind == "STRING":
        return f'"{options["default"]}"' if options.get("default") else "text"
    if kind == "BOOLEAN":
        return "on" if options.get("default") else "off"
    return str(kind)


def _is_files(values: list[Any]) -> bool:
    """Whether a list shows what lies in a folder of this machine."""
    return any(re.search(r"\.(safetensors|bin|pt|ipadpt)$", str(value)) for value in values)


def english(info: dict[str, Any]) -> dict[str, Any]:
    """A node's entry in nodeDefs.json, in the schema's own language."""
    tips = info.get("output_tooltips") or []
    entry: dict[str, Any] = {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": name, "tooltip": options.get("tooltip", "")}
            for name, _, options, _ in inputs_of(info)
        },
    }
    outputs = {
        str(index): {"name": name, "tooltip": tip}
        for index, (name, tip) in enumerate(zip(info["output_name"], tips, strict=False))
        if tip
    }
    return entry | ({"outputs": outputs} if outputs else {})
