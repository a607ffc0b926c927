"""What the pages of help and the English locale say of a node, made from its schema.

The tables of web/docs and the whole of locales/en follow the schemas; the prose is by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipadapter.adapters.families import Family
from ipadapter.library.downloads import DOWNLOADS
from ipadapter.library.presets import (
    COMMUNITY_PRESETS,
    ENCODER_SOURCES,
    FACEID_PRESETS,
    OFFICIAL,
    UNIFIED_PRESETS,
    Requirement,
)

ROOT = Path(__file__).resolve().parents[3]
PAGES = ROOT / "web" / "docs"
MADE = ("Files", "Inputs", "Outputs")
FIRST = ("Weight types", "Common mistakes")  # what people open a page for
ALL_PRESETS = (*UNIFIED_PRESETS, *FACEID_PRESETS, *COMMUNITY_PRESETS)
PRESETS = {
    "IPAdapterUnifiedLoader": UNIFIED_PRESETS,
    "IPAdapterUnifiedLoaderFaceID": FACEID_PRESETS,
    "IPAdapterUnifiedLoaderCommunity": COMMUNITY_PRESETS,
    "IPAdapterModelLoader": ALL_PRESETS,
    "IPAdapterImageEncoderLoader": ALL_PRESETS,
}
VIT_H, VIT_G, VIT_L_336, SIGLIP, VIT_L = (encoder.file for encoder in ENCODER_SOURCES)
ENCODER_NAMES = {
    VIT_H: "ViT-H",
    VIT_G: "ViT-bigG",
    VIT_L_336: "ViT-L 336",
    SIGLIP: "SigLIP so400m",
    VIT_L: "ViT-L",
}
# Of the families whose files all want the same.
FAMILY_ENCODERS = {
    Family.KOLORS_PLUS: VIT_L_336,
    Family.KOLORS_FACEID_PLUS: VIT_L_336,
    Family.FLUX_XLABS: VIT_L,
    Family.FLUX_INSTANTX: SIGLIP,
    Family.SD3_INSTANTX: SIGLIP,
}
FACE_ONLY = (Family.FACEID, Family.PORTRAIT, Family.PORTRAIT_UNNORM)


def inputs_of(info: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """Name, type, options and whether it is optional, of each input in order."""
    for group in ("required", "optional"):
        for name, declared in info["input"].get(group, {}).items():
            kind, options = declared[0], declared[1] if len(declared) > 1 else {}
            yield name, kind, options, group == "optional"


def renewed(text: str, info: dict[str, Any]) -> str:
    """A page with its tables made anew, between what people look for and its other sections."""
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    mine = {section.split("\n")[0].strip(): f"## {section}" for section in sections}
    first = [mine.pop(title) for title in FIRST if title in mine]
    made = [files_section(info["name"]), inputs_section(info), outputs_section(info)]
    others = [section for title, section in mine.items() if title not in MADE]
    parts = [head, *first, *filter(None, made), *others]
    return "\n\n".join(part.strip() for part in parts) + "\n"


TRANSLATED = {"zh": "输入", "ja": "入力"}  # the heading of the inputs


def translated(text: str, language: str, entry: dict[str, Any]) -> str:
    """A translated page with its title and its inputs as the locale has them, the inputs last."""
    heading = TRANSLATED[language]
    body = text.split(f"## {heading}\n")[0].split("\n", 1)[1].strip()
    rows = [
        f"- `{name}` ({given['name']}): {given['tooltip']}"
        for name, given in entry["inputs"].items()
    ]
    made = "\n".join([f"## {heading}", "", *rows])
    return f"# {entry['display_name']}\n\n{body}\n\n{made}\n"


def inputs_section(info: dict[str, Any]) -> str:
    """Every input: what it means, its default and range. A list: the panel of help is narrow."""
    rows = [
        f"- `{name}`{_note(kind, options, optional)}: {options.get('tooltip', '')}"
        f"{_choices(options)}"
        for name, kind, options, optional in inputs_of(info)
    ]
    return "\n".join(["## Inputs", "", *rows])


def outputs_section(info: dict[str, Any]) -> str:
    """Every output; empty where there is none."""
    tips = info.get("output_tooltips") or [None] * len(info["output"])
    names = zip(info["output_name"], info["output"], tips, strict=True)
    rows = [f"- `{name}` ({kind}){f': {tip}' if tip else ''}" for name, kind, tip in names]
    return "\n".join(["## Outputs", "", *rows]) if rows else ""


def files_section(node_id: str) -> str:
    """Which official file goes where, on the pages of loaders."""
    presets = PRESETS.get(node_id)
    if not presets:
        return ""
    lines = [
        "## Files",
        "",
        "Adapters go into `models/ipadapter`, encoders into `models/clip_vision`, LoRAs into "
        "`models/loras`. Names are yours to choose; these are the usual ones.",
    ]
    used: set[str] = set()
    for base in OFFICIAL:
        needed = [(p, OFFICIAL[base][p]) for p in presets if base in _bases(p)]
        lines += ["", f"**{base}**", ""] if needed else []
        for preset, requirement in needed:
            used |= {encoder_of(one) for one in (requirement, requirement.other) if one}
            lines.append(f"- {preset}: {_file(requirement)}")
    rows = [f"- {name}: {_link(file)}" for file, name in ENCODER_NAMES.items() if name in used]
    return "\n".join([*lines, *(["", "**Image encoders**", "", *rows] if rows else [])])


def _bases(preset: str) -> list[str]:
    bases = [base for base, presets in OFFICIAL.items() if preset in presets]
    return ["Kolors"] if "Kolors" in bases else bases


def _file(needed: Requirement) -> str:
    lora = f", LoRA {_link(needed.lora)}" if needed.lora else ""
    own = f"{_link(needed.file)}{lora}, encoder {encoder_of(needed)}"
    return f"{own}; or {_file(needed.other)}" if needed.other else own


def _link(name: str) -> str:
    file = DOWNLOADS[name]
    return f"[{name}]({file.url}) ({file.size})"


def encoder_of(needed: Requirement) -> str:
    """The encoder that an official file wants, by its short name."""
    if needed.family in FACE_ONLY:
        return "none (face analysis buffalo_l)"
    is_g = needed.family is Family.STANDARD and needed.embed_dim == 1280
    return ENCODER_NAMES[FAMILY_ENCODERS.get(needed.family, VIT_G if is_g else VIT_H)]


def _note(kind: Any, options: dict[str, Any], optional: bool) -> str:
    """In brackets: default and range, or whether it may be left open."""
    parts = ["optional"] if optional else []
    if kind in ("INT", "FLOAT"):
        parts.append(f"{options['default']}, from {options['min']} to {options['max']}")
    if kind == "BOOLEAN":
        parts.append("on" if options.get("default") else "off")
    if kind == "STRING" and options.get("default"):
        parts.append(f'"{options["default"]}"')
    return f" ({'; '.join(parts)})" if parts else ""


def _choices(options: dict[str, Any]) -> str:
    values = options.get("options") or []
    if not values or _is_files(values):
        return ""
    return f" Choices: {', '.join(f'*{value}*' for value in values)}."


def _is_files(values: list[Any]) -> bool:
    """Whether a list shows what lies in a folder of this machine, files or folders."""
    return values[0] == "(none)" or any(
        re.search(r"\.(safetensors|bin|pt|ipadpt)$", str(value)) for value in values
    )


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
