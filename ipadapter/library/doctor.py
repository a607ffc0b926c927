"""A report in plain words: what is connected, what fits, what does not and why, what to get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..adapters.spec import AdapterSpec
from ..bases.flux import FLUX
from ..bases.layout import Layout
from ..bases.sd3 import LARGE
from ..bases.unet import base_name
from ..errors import plain_text
from ..files.kinds import Kind
from .choose import (
    PresetFiles,
    choose,
    encoder_source,
    family_encoder,
    presets_of,
    why_not_encoder,
    without_name,
)
from .downloads import DOWNLOADS
from .presets import PLUS, STANDARD, requirement
from .remarks import remark
from .scan import EncoderFacts, FoundFile, ModelFolder, why_not_width

SHOWN = 60
# The first things to try on each base.
_USUAL = (
    *(("SD1.5", STANDARD), ("SD1.5", PLUS), ("SDXL", STANDARD), ("SDXL", PLUS)),
    *((FLUX, STANDARD), (FLUX, PLUS), (LARGE, PLUS)),
)


@dataclass(frozen=True)
class ModelFacts:
    """A loaded diffusion model: the layers that an adapter attaches to."""

    token_dim: int
    """Width of the text context; 0 if the model has no cross-attention of the known kind."""
    layer_widths: tuple[int, ...]
    """Widths of its cross-attention layers in the order input, output, middle."""
    kind: str = ""
    """The host's name for it, such as "SDXL"."""
    base: str = ""
    """Its base where the layers alone do not tell it (Kolors has SDXL's layers)."""
    transformer: Layout | None = None
    """Its blocks where it is a transformer."""

    @property
    def base_name(self) -> str:
        """The base as in spec.BASES."""
        if self.transformer is not None:
            return self.transformer.name
        return self.base or base_name(self.token_dim, self.layer_widths)

    @property
    def layers(self) -> str:
        """What adapters attach to, for messages."""
        count = len(self.layer_widths)
        if self.transformer is not None:
            return f"{count} blocks, width {self.layer_widths[0] if count else 0}"
        return f"{count} cross-attention layers, text width {self.token_dim}"

    def takes(self, spec: AdapterSpec) -> bool:
        """Whether an adapter fits it."""
        if self.transformer is not None:
            return spec.fits(self.transformer)
        return (spec.token_dim, spec.layer_widths) == (self.token_dim, self.layer_widths)


@dataclass(frozen=True)
class DoctorSubject:
    """What the report is about, as far as it is connected."""

    model: ModelFacts | None = None
    adapter: tuple[str, AdapterSpec] | None = None
    """Name and spec of a connected adapter."""
    encoder: tuple[str, EncoderFacts] | None = None
    """Name and dimensions of a connected image encoder."""
    preset: str = ""


@dataclass(frozen=True)
class ModelFolders:
    """The model folders, listed."""

    adapters: ModelFolder
    encoders: ModelFolder
    loras: ModelFolder


def report(subject: DoctorSubject, folders: ModelFolders, remarks: Iterable[str] = ()) -> str:
    """The whole report. `remarks` are lines on the environment, such as insightface."""
    sections = [
        _model_section(subject.model),
        _adapter_section(subject),
        _encoder_section(subject),
        _preset_section(subject, folders),
        _adapters_section(subject.model, folders.adapters),
        _encoders_section(subject, folders.encoders),
        _lora_section(folders.loras),
        _missing_section(folders) if subject.model is None else [],
        list(remarks),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def why_not_model(spec: AdapterSpec, model: ModelFacts) -> str:
    """Why an adapter does not fit a model; empty if it does."""
    if not model.layer_widths:
        return "the model has no cross-attention layers of the UNet kind"
    if model.takes(spec):
        return ""
    if model.transformer is not None:
        return (
            f"the adapter is for {spec.base_name} ({len(spec.layer_widths)} layers, width "
            f"{spec.layer_widths[0]}), the model is {model.base_name} ({model.layers})"
        )
    return (
        f"the adapter is for {spec.base_name} ({len(spec.layer_widths)} layers, text width "
        f"{spec.token_dim}), the model is {model.base_name} ({len(model.layer_widths)} layers, "
        f"text width {model.token_dim})"
    )


def _missing_section(folders: ModelFolders) -> list[str]:
    """What to get for the usual presets of each base, without a checkpoint to judge by."""
    lines: list[str] = []
    for base, preset in _USUAL:
        try:
            choose(preset, base, folders.adapters, folders.encoders, folders.loras)
        except (ValueError, FileNotFoundError):
            needed = requirement(preset, base)
            encoder = family_encoder(needed.family, needed.embed_dim)
            lines += [f'  {base}, preset "{preset}":']
            lines += [
                f"    {DOWNLOADS[name].advice} to models/{DOWNLOADS[name].directory}"
                for name in (needed.file, encoder.file if encoder else "")
                if name
            ]
    return ["TO GET  (what is there already need not be fetched again)", *lines] if lines else []


def _model_section(model: ModelFacts | None) -> list[str]:
    if model is None:
        return [
            "MODEL  none connected: the folders are listed, and what to get. Connect a checkpoint "
            "to see what fits it."
        ]
    kind = f"{model.kind}: " if model.kind and model.kind != model.base_name else ""
    if not model.layer_widths:
        return [
            f"MODEL  {kind}not a UNet with cross-attention. No IP-Adapter for it is known: those "
            "for SD1.5, SD2, SDXL, Kolors, Flux.1 and SD3.5-Large cannot be applied to it."
        ]
    return [f"MODEL  {kind}{model.base_name}, {model.layers}"]


def _adapter_section(subject: DoctorSubject) -> list[str]:
    if not subject.adapter:
        return []
    name, spec = subject.adapter
    lines = [f"ADAPTER  {name}: {spec.summary}"]
    if subject.model is not None:
        reason = why_not_model(spec, subject.model)
        lines.append(f"  does not fit: {reason}" if reason else "  fits the model")
    if hint := remark(spec, name):
        lines.append(f"  {hint}")
    return lines


def _encoder_section(subject: DoctorSubject) -> list[str]:
    if not subject.encoder:
        missing = subject.adapter and subject.adapter[1].encoder_name
        return [f"ENCODER  none connected; the adapter needs {missing}"] if missing else []
    name, facts = subject.encoder
    lines = [f"ENCODER  {name}: {facts.summary}"]
    if subject.adapter:
        reason = why_not_width(facts, subject.adapter[1])
        lines.append(f"  does not fit the adapter: {reason}" if reason else "  fits the adapter")
    return lines


def _preset_section(subject: DoctorSubject, folders: ModelFolders) -> list[str]:
    if not subject.preset or subject.model is None:
        return []
    title = f'PRESET  "{subject.preset}"'
    try:
        choice = choose(
            subject.preset,
            subject.model.base_name,
            folders.adapters,
            folders.encoders,
            folders.loras,
        )
    except (ValueError, FileNotFoundError) as error:
        return [title, *(f"  {line}" for line in plain_text(error).splitlines())]
    return [title, *(f"  {line}" for line in _chosen(choice))]


def _chosen(choice: PresetFiles) -> list[str]:
    lines = [f"adapter: {choice.adapter.name}"]
    if choice.encoder:
        lines.append(f"encoder: {choice.encoder.name}")
    if choice.lora or choice.spec.has_lora:
        lines.append(f"LoRA: {choice.lora.name if choice.lora else 'the one inside the adapter'}")
    return [*lines, *choice.notes]


def _adapters_section(model: ModelFacts | None, adapters: ModelFolder) -> list[str]:
    def line(file: FoundFile) -> tuple[bool, str]:
        spec = file.contents.spec
        if spec is None:
            return False, file.contents.summary
        if model is None:
            return True, spec.summary
        reason = why_not_model(spec, model)
        presets = presets_of(file, model.base_name)
        use = f"; presets: {', '.join(presets)}" if presets and not reason else ""
        hint = remark(spec, file.name)
        return not reason, f"{spec.summary}{use}" + (f". {hint}" if hint else "")

    return _folder_section("ADAPTER FILES", adapters, line)


def _encoders_section(subject: DoctorSubject, encoders: ModelFolder) -> list[str]:
    needed = subject.adapter[1] if subject.adapter and subject.adapter[1].embed_dim else None

    def line(file: FoundFile) -> tuple[bool, str]:
        reason = why_not_encoder(file, needed) if needed else ""
        return not reason and bool(file.contents.encoder), file.contents.summary

    lines = _folder_section("ENCODER FILES", encoders, line)
    if needed and all(why_not_encoder(file, needed) for file in encoders):
        source = encoder_source(needed)
        advice = f". {DOWNLOADS[source.file].advice}" if source else ""
        lines.append(f"  none fits the adapter, which needs {needed.encoder_name}{advice}")
    return lines


def _lora_section(loras: ModelFolder) -> list[str]:
    """Only LoRAs that may belong to FaceID adapters; a folder of styles says nothing here."""
    faces = [file for file in loras if "faceid" in file.name.lower()]
    lines = [f"  {file.name}: {file.contents.summary}" for file in faces[:SHOWN]]
    return [f"FACEID LORAS  in {_places(loras)}", *(lines or ["  none"])]


def _folder_section(
    title: str, listing: ModelFolder, line: Callable[[FoundFile], tuple[bool, str]]
) -> list[str]:
    lines = [f"{title}  in {_places(listing)}"]
    for file in listing.files[:SHOWN]:
        fits, text = line(file)
        misplaced = file.contents.kind not in (Kind.ADAPTER, Kind.CLIP_VISION, Kind.OPENCLIP)
        mark = "+" if fits else "?" if misplaced or file.contents.problem else "-"
        lines.append(f"  {mark} {file.name}: {without_name(text, file)}")
    if len(listing) > SHOWN:
        lines.append(f"  and {len(listing) - SHOWN} more")
    return lines if len(listing) else [*lines, "  no model files"]


def _places(listing: ModelFolder) -> str:
    return ", ".join(str(folder) for folder in listing.folders) or "no folder"
