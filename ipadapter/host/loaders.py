"""Model files: only names that the host's own folder lists offer are ever opened."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher

from ..adapters.adapter import Adapter
from ..adapters.checkpoint import read_checkpoint
from ..adapters.lora import own_lora
from ..apply.wire import LoadedAdapter, loaded_adapter
from ..errors import Problem
from ..files.tensors import open_tensor_file
from ..library.choose import PresetFiles, choose
from ..library.doctor import DoctorSubject, ModelFacts, ModelFolders, report
from ..library.remarks import remark
from ..library.scan import scan
from ..pictures.faces import environment
from .bases.carrier import read_transformer
from .bases.install import layout_of
from .encoders import FOLDER as ENCODERS
from .encoders import facts_of, load_encoder
from .faces import load_face_analysis

logger = logging.getLogger("ipadapter")

ADAPTERS = "ipadapter"


def register_folders() -> None:
    """Make `models/ipadapter`, beside any that `extra_model_paths.yaml` named before, and say so
    where none of them holds a file."""
    own = os.path.join(folder_paths.models_dir, ADAPTERS)
    folder_paths.add_model_folder_path(ADAPTERS, own)
    try:
        os.makedirs(own, exist_ok=True)
    except OSError as error:  # a read-only models folder holds what it holds
        logger.warning("%s cannot be made: %s", own, error)
    paths, extensions = folder_paths.folder_names_and_paths[ADAPTERS]
    if not extensions:  # an entry from extra_model_paths.yaml lists every file
        folder_paths.folder_names_and_paths[ADAPTERS] = (
            paths,
            set(folder_paths.supported_pt_extensions),
        )
    if not adapter_names():
        logger.info(
            "No image prompt adapter in %s yet. IPAdapter Doctor lists what to download.", own
        )


def adapter_names() -> list[str]:
    """Names for the loader's list, relative to the adapter folders."""
    return folder_paths.get_filename_list(ADAPTERS)


def find(folder: str, name: str) -> Path:
    """The path of a listed model file.

    Raises FileNotFoundError for anything that is not in the list.
    """
    path = (
        folder_paths.get_full_path(folder, name)
        if name in folder_paths.get_filename_list(folder)
        else None
    )
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(folder))
        raise Problem.FILE_MISSING(
            f"{name} is not in the {folder} folder ({folders}). Put the file there and press R to "
            "refresh the lists, or pick another.",
            FileNotFoundError,
        )
    return Path(path)


def load_adapter(name: str) -> Adapter:
    """Open an adapter file: its header and its projector's shapes; layer weights stay on disk."""
    return Adapter.from_checkpoint(read_checkpoint(find(ADAPTERS, name)))


def described(adapter: Adapter, name: str) -> list[str]:
    """Lines for the loader's node: what the file is, and what its listed name tells besides."""
    hint = remark(adapter.spec, name)
    if hint:
        logger.warning("%s: %s", name, hint)
    return [f"{adapter.name}: {adapter.spec.summary}", *([hint] if hint else [])]


def fingerprint(folder: str, name: str) -> tuple[str, int, int]:
    """Changes when the file does: name, size, time of change."""
    stat = find(folder, name).stat()
    return name, stat.st_size, stat.st_mtime_ns


LORAS = "loras"


@dataclass(frozen=True, eq=False)
class LoadedPreset:
    """What a unified loader gives: the MODEL (with a LoRA where the adapter has one),
    the adapter, and notes."""

    model: ModelPatcher
    pipeline: LoadedAdapter
    notes: tuple[str, ...] = ()


def model_facts(model: ModelPatcher) -> ModelFacts:
    """What a MODEL is; no layers where no adapter for it is known."""
    kind = type(model.model).__name__
    try:
        layout = layout_of(model)
    except ValueError:
        return ModelFacts(0, (), kind)
    widths = tuple(layer.width for layer in layout.layers)
    unet = model.get_model_object("diffusion_model")
    if read_transformer(unet) is not None:
        return ModelFacts(0, widths, kind, transformer=layout)
    base = "Kolors" if hasattr(unet, "encoder_hid_proj") else ""
    return ModelFacts(layout.context_dim, widths, kind, base)


def model_folders() -> ModelFolders:
    """The folders that loaders search, listed afresh."""
    return ModelFolders(
        *(scan(folder_paths.get_folder_paths(kind)) for kind in (ADAPTERS, ENCODERS, LORAS))
    )


def load_preset(model: ModelPatcher, preset: str, lora_strength: float = 0.0) -> LoadedPreset:
    """Find and open what a preset means for this MODEL.

    The MODEL is patched with the adapter's LoRA, if any.
    """
    layout = layout_of(model)  # a MODEL without cross-attention is refused here, with the reason
    base = model_facts(model).base_name or layout.name
    folders = model_folders()
    chosen = choose(
        preset,
        base,
        folders.adapters,
        folders.encoders,
        folders.loras,
        need_lora=lora_strength != 0,
    )
    adapter = Adapter(chosen.spec, read_checkpoint(chosen.adapter.path))
    encoder = None if chosen.encoder is None else load_encoder(chosen.encoder.path)
    return LoadedPreset(
        with_lora(model, chosen, lora_strength),
        LoadedAdapter(adapter, encoder),
        (summary(chosen), *chosen.notes),
    )


def load_face_preset(
    model: ModelPatcher, preset: str, lora_strength: float, provider: str
) -> LoadedPreset:
    """Like `load_preset`, with face analysis: antelopev2 for Kolors, else buffalo_l."""
    loaded = load_preset(model, preset, lora_strength)
    kolors = loaded.pipeline.adapter.spec.base_name == "Kolors"
    analysis = load_face_analysis("antelopev2" if kolors else "buffalo_l", provider)
    return replace(loaded, pipeline=replace(loaded.pipeline, insightface=analysis))


def with_lora(model: ModelPatcher, chosen: PresetFiles, strength: float) -> ModelPatcher:
    """The MODEL with the LoRA that belongs to a FaceID adapter: its file, else the
    one inside the adapter."""
    if strength == 0:
        return model
    if chosen.lora is not None:
        state = dict(open_tensor_file(chosen.lora.path).tensors)
    elif chosen.lora_inside:
        checkpoint = read_checkpoint(chosen.adapter.path)
        blocks = [layer.block for layer in layout_of(model).layers]
        state = own_lora(checkpoint.ip_adapter, blocks, checkpoint.name)
    else:
        return model
    patched, _ = comfy.sd.load_lora_for_models(model, None, state, strength, 0)
    return cast(ModelPatcher, patched)


def summary(chosen: PresetFiles) -> str:
    """One line for the node: which files were taken."""
    files = [chosen.adapter, chosen.encoder, chosen.lora]
    names = " + ".join(Path(file.name).name for file in files if file is not None)
    return f"{names}: {chosen.spec.summary}"


def diagnose(model: ModelPatcher | None, ipadapter: Any, clip_vision: Any, preset: str) -> str:
    """The doctor's report on what is connected and what lies in the folders."""
    pipeline = None if ipadapter is None else loaded_adapter(ipadapter)
    if pipeline is not None:
        pipeline = replace(pipeline, clip_vision=clip_vision or pipeline.clip_vision)
        clip_vision = pipeline.clip_vision
    subject = DoctorSubject(
        None if model is None else model_facts(model),
        None if pipeline is None else (pipeline.adapter.name, pipeline.adapter.spec),
        None if clip_vision is None else ("the connected encoder", facts_of(clip_vision)),
        preset,
    )
    return report(subject, model_folders(), [environment()])
