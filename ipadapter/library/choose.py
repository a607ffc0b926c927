"""The files that a preset means, chosen by content; names only break ties between equal shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..adapters.checkpoint import read_checkpoint
from ..adapters.families import FaceVersion, Family
from ..adapters.spec import AdapterSpec
from ..adapters.vision import ENCODERS, encoder_name
from ..errors import Problem
from ..files.tensors import open_tensor_file
from .downloads import DOWNLOADS
from .presets import (
    ENCODER_SOURCES,
    OFFICIAL,
    EncoderSource,
    Requirement,
    Variant,
    letters,
    requirement,
    variant_of,
)
from .remarks import remark
from .scan import FoundFile, ModelFolder, why_not_width

SHOWN = 20


@dataclass(frozen=True)
class PresetFiles:
    """The files for a preset on a base.

    `encoder` is None where the family takes no image encoder.
    """

    adapter: FoundFile
    spec: AdapterSpec
    encoder: FoundFile | None
    lora: FoundFile | None
    notes: tuple[str, ...] = ()
    """What the user should know, such as a choice that rests on shapes alone."""

    @property
    def lora_inside(self) -> bool:
        """Whether the adapter's own LoRA is to be used, because no LoRA file was found."""
        return self.spec.has_lora and self.lora is None


def choose(
    preset: str,
    base: str,
    adapters: ModelFolder,
    encoders: ModelFolder,
    loras: ModelFolder,
    need_lora: bool = True,
) -> PresetFiles:
    """The adapter, encoder and LoRA of a preset for a model of `base` (a name as in spec.BASES).

    ValueError where there is no such preset for the base or the names do not decide,
    FileNotFoundError where a file is missing: the message lists what was searched, each file seen
    with why it does not fit, and what to download.
    """
    needed = requirement(preset, base)
    adapter, spec, notes = find_adapter(preset, base, needed, adapters)
    encoder = find_encoder(spec, encoders) if spec.embed_dim else None
    lora = None
    if needed.lora or spec.has_lora:
        lora = find_lora(adapter, spec, needed.lora, loras)
        if lora is None and need_lora and not spec.has_lora:
            raise Problem.NO_FITTING_FILE(_no_lora(adapter, needed, loras), FileNotFoundError)
    hint = remark(spec, adapter.name)
    return PresetFiles(adapter, spec, encoder, lora, (*notes, hint) if hint else notes)


def find_adapter(
    preset: str, base: str, needed: Requirement, adapters: ModelFolder
) -> tuple[FoundFile, AdapterSpec, tuple[str, ...]]:
    """The adapter file for a requirement, what it is, and notes on the choice."""
    fitting = [(file, file.contents.spec) for file in adapters if not _why_not(file, base, needed)]
    if not fitting and needed.other:
        with contextlib.suppress(FileNotFoundError):
            return find_adapter(preset, base, needed.other, adapters)
    told = [(f, spec) for f, spec in fitting if spec and variant_of(spec, f.name)]
    untold = [(f, spec) for f, spec in fitting if spec and not variant_of(spec, f.name)]
    if not told and len(untold) > 1:
        raise Problem.SEVERAL_FILES(_ambiguous(preset, base, needed, [file for file, _ in untold]))
    if not told and not untold:
        raise Problem.NO_FITTING_FILE(
            _no_adapter(preset, base, needed, adapters), FileNotFoundError
        )
    file, spec = max(reversed(told or untold), key=lambda pair: _rank(pair[0], needed.file))
    spec = spec.with_face_version(needed.family.row.version or FaceVersion.AUTO)
    note = f"{file.name} was chosen by its content; its name does not tell {needed.variant.value}."
    return file, spec, () if told else (note,)


def find_encoder(spec: AdapterSpec, encoders: ModelFolder) -> FoundFile:
    """The image encoder that an adapter needs; FileNotFoundError says which files do not fit."""
    fitting = [file for file in encoders if not why_not_encoder(file, spec)]
    if not fitting:
        raise Problem.NO_FITTING_FILE(_no_encoder(spec, encoders), FileNotFoundError)
    source = encoder_source(spec)
    return max(reversed(fitting), key=lambda file: _encoder_rank(file, source))


def encoder_source(spec: AdapterSpec) -> EncoderSource | None:
    """Where the encoder that an adapter needs is published; None for an unknown one."""
    return family_encoder(spec.family, spec.embed_dim)


def family_encoder(family: Family, width: int) -> EncoderSource | None:
    """The same for adapters of a family that take features of a width."""
    row = family.row
    fitting = (one for one in ENCODER_SOURCES if one.kind.width(row.reads) == width)
    return next((one for one in fitting if row.encoder_size in (0, one.kind.image_size)), None)


def find_lora(
    adapter: FoundFile, spec: AdapterSpec, official: str, loras: ModelFolder
) -> FoundFile | None:
    """The LoRA that belongs to a FaceID adapter: by name if one is so named,
    else by its weights."""
    own = Path(adapter.name).stem + "_lora"
    stems = {letters(own), letters(Path(official).stem) if official else letters(own)}
    for file in loras:
        if letters(Path(file.name).stem) in stems and _fits_lora(file, spec):
            return file
    if not spec.has_lora:
        return None
    return next((f for f in loras if _fits_lora(f, spec) and same_lora(adapter.path, f.path)), None)


def same_lora(adapter: Path, lora: Path) -> bool:
    """Whether a LoRA file holds the LoRA inside a FaceID adapter; compares one small matrix."""
    wanted = read_checkpoint(adapter).ip_adapter.get("0.to_q_lora.down.weight")
    if wanted is None or not wanted.any():
        return False
    tensors = open_tensor_file(lora).tensors
    shape = tuple(wanted.shape)
    return any(
        _alike(wanted, tensors[key])
        for key in tensors
        if tensors.shape(key) == shape and "attn1" in key and "to_q" in key
    )


def _alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    similarity = torch.nn.functional.cosine_similarity(
        first.float().flatten(), second.float().flatten(), dim=0
    )
    return bool(similarity > 0.999)


def _fits_lora(file: FoundFile, spec: AdapterSpec) -> bool:
    facts = file.contents.lora
    bases = {"Kolors": "SDXL"}
    return bool(
        facts and facts.only_attention and facts.base == bases.get(spec.base_name, spec.base_name)
    )


def _why_not(file: FoundFile, base: str, needed: Requirement) -> str:
    """Why a file is not what a preset needs; empty if it is."""
    spec = file.contents.spec
    if spec is None or file.contents.problem:
        return file.contents.summary
    versions = needed.family.row.version and spec.family.row.version  # told apart by name only
    related = versions or spec.family is needed.family
    if not related or spec.base_name != _adapter_base(needed, base):
        return f"{spec.family.value} for {spec.base_name}"
    if needed.embed_dim and spec.embed_dim != needed.embed_dim:
        return f"made for {spec.encoder_name}"
    if needed.tokens not in (0, spec.num_tokens):
        return f"it has {spec.num_tokens} tokens per picture"
    variant = variant_of(spec, file.name)
    if variant and needed.variant not in (variant, Variant.ANY):
        return f"its name says that it is {variant.value}"
    return ""


def presets_of(file: FoundFile, base: str) -> list[str]:
    """The presets of a base that a file can serve."""
    return [
        preset
        for preset, needed in OFFICIAL.get(base, {}).items()
        if any(not _why_not(file, base, one) for one in (needed, needed.other) if one)
    ]


def _adapter_base(needed: Requirement, base: str) -> str:
    """The base that the adapter is for; Kolors' UNet may be known to the host as SDXL."""
    return needed.family.row.base or base


def _rank(file: FoundFile, official: str) -> tuple[bool, bool]:
    """The officially named file goes first, then a .safetensors."""
    named = Path(official).stem
    return (
        bool(named) and letters(Path(file.name).stem) == letters(named),
        file.name.lower().endswith(".safetensors"),
    )


def why_not_encoder(file: FoundFile, spec: AdapterSpec) -> str:
    """Why a file is not the image encoder that an adapter needs; empty if it is."""
    contents = file.contents
    facts = contents.encoder
    if facts is None or contents.problem:
        return contents.summary
    reason = why_not_width(facts, spec)
    if reason:
        return reason
    source = encoder_source(spec)
    known = [kind.image_size for kind in ENCODERS if kind.hidden == facts.hidden]
    if not source or len(known) < 2 or spec.base_name not in OFFICIAL:
        return ""
    if facts.image_size != source.kind.image_size:
        return f"{facts.summary}; needed is {source.kind.image_size} px"
    return ""


def _encoder_rank(file: FoundFile, source: EncoderSource | None) -> tuple[bool, bool, int, bool]:
    facts = file.contents.encoder
    if not facts or not source:
        return False, False, 0, file.name.endswith(".safetensors")
    text = letters(file.path.parent.name + file.path.name)
    return (
        facts.hidden == source.kind.hidden,
        facts.image_size == source.kind.image_size,
        sum(hint in text for hint in source.hints),
        file.name.endswith(".safetensors"),
    )


def _seen(listing: ModelFolder, reason: Callable[[FoundFile], str]) -> str:
    """The part of a message that says where was searched and what was seen."""
    folders = ", ".join(str(folder) for folder in listing.folders) or "no folder is set up"
    lines = [f"  {file.name}: {without_name(reason(file), file)}" for file in listing.files[:SHOWN]]
    if len(listing) > SHOWN:
        lines.append(f"  and {len(listing) - SHOWN} more files that do not fit")
    files = "\n".join(lines) if lines else "  no model files"
    return f"Searched: {folders}\nSeen:\n{files}"


def without_name(reason: str, file: FoundFile) -> str:
    """A reason without the file name that the line has already."""
    name = file.path.name
    return reason.removeprefix(f"{name}: ").removeprefix(f"{name} ").removeprefix("is ")


def _target(listing: ModelFolder, usual: str) -> str:
    return str(listing.folders[0]) if listing.folders else usual


def _no_adapter(preset: str, base: str, needed: Requirement, adapters: ModelFolder) -> str:
    target = _target(adapters, "models/ipadapter")
    fix = (
        f"{DOWNLOADS[needed.file].advice} to {target}. Any file name works."
        if needed.file
        else f"No official file exists for this base; put one made for it into {target}."
    )
    return (
        f'No IP-Adapter for preset "{preset}" on {base} was found: needed is '
        f"{needed.summary} for {_adapter_base(needed, base)}{_made_for(needed)}.\n"
        f"{_seen(adapters, lambda file: _why_not(file, base, needed))}\n{fix}"
    )


def _made_for(needed: Requirement) -> str:
    if not needed.embed_dim:
        return ""
    return f", made for {encoder_name(needed.family.row.reads, needed.embed_dim)}"


def _ambiguous(preset: str, base: str, needed: Requirement, files: list[FoundFile]) -> str:
    names = ", ".join(file.name for file in files)
    return (
        f'Several files could be preset "{preset}" on {base}, which is {needed.summary}: {names}. '
        f"They have the same shapes and their names do not tell them apart. Rename the right one "
        f"to {needed.file or 'a name that tells'}, or load it with IPAdapter Model Loader."
    )


def _no_encoder(spec: AdapterSpec, encoders: ModelFolder) -> str:
    target = _target(encoders, "models/clip_vision")
    source = encoder_source(spec)
    fix = (
        f"{DOWNLOADS[source.file].advice} to {target}. Any file name works."
        if source
        else f"Put the image encoder that the adapter was trained with into {target}."
    )
    return (
        f"No image encoder for the adapter was found: it is {spec.family.value} for "
        f"{spec.base_name} and needs {spec.encoder_name}.\n"
        f"{_seen(encoders, lambda file: why_not_encoder(file, spec))}\n{fix}"
    )


def _no_lora(adapter: FoundFile, needed: Requirement, loras: ModelFolder) -> str:
    target = _target(loras, "models/loras")
    name = needed.lora or f"{Path(adapter.name).stem}_lora.safetensors"
    folders = ", ".join(str(folder) for folder in loras.folders) or "no folder is set up"
    return (
        f"The LoRA that belongs to {adapter.name} was not found: needed is {name}, and the adapter "
        f"file does not hold one itself.\nSearched: {folders} ({len(loras)} files)\n"
        f"{DOWNLOADS[name].advice if name in DOWNLOADS else f'Download {name}'} to {target}."
    )
