"""Folders full of model files, as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ipadapter.adapters.families import Family
from ipadapter.library.choose import PresetFiles, choose
from ipadapter.library.scan import ModelFolder, scan

from .adapters import flat, shapes_of, synthetic_adapter
from .modelfiles import (
    ENCODER_FILES,
    adapter_file,
    encoder_shapes,
    lora_shapes,
    sparse_safetensors,
)
from .official_files import OFFICIAL_FILES, OfficialFile

KINDS = ("ipadapter", "clip_vision", "loras")
LORA_KEY = "0.to_q_lora.down.weight"
LORA_CONTEXT = {"SD1.5": 768, "SDXL": 2048, "Kolors": 2048}


class Models:
    """Folders of models on disk."""

    def __init__(self, root: Path) -> None:
        self.folders = {name: root / name for name in KINDS}
        for folder in self.folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def adapter(self, name: str, file: OfficialFile, **changes: Any) -> None:
        nested = synthetic_adapter(file.family, file.base, **(file.changes | changes))
        data = {}
        if file.lora and changes.get("lora", True):
            key = f"ip_adapter.{LORA_KEY}"
            data = {key: lora_matrix(file, shapes_of(flat(nested))[key])}
        adapter_file(self.folders["ipadapter"] / name, nested, data)

    def encoder(self, name: str, dims: tuple[int, int, int]) -> None:
        sparse_safetensors(self.folders["clip_vision"] / name, encoder_shapes(*dims))

    def lora(self, name: str, file: OfficialFile) -> None:
        shapes = lora_shapes(LORA_CONTEXT[file.base], width=320 if file.base == "SD1.5" else 640)
        key = next(key for key in shapes if "attn1_to_q.lora_down" in key)
        data = {key: lora_matrix(file, shapes[key])}
        sparse_safetensors(self.folders["loras"] / name, shapes, data)

    def listings(self) -> tuple[ModelFolder, ModelFolder, ModelFolder]:
        adapters, encoders, loras = (scan([folder]) for folder in self.folders.values())
        return adapters, encoders, loras

    def choose(self, preset: str, base: str, **options: bool) -> PresetFiles:
        return choose(preset, base, *self.listings(), **options)

    def add_official(self) -> None:
        """Every published file under its official name, in subfolders."""
        for file in OFFICIAL_FILES:
            self.adapter(f"{file.base}/{file.name}", file)
            if file.lora:
                self.lora(f"faces/{lora_name(file)}", file)
        for name, dims in ENCODER_FILES.items():
            self.encoder(name, dims)

    def add_nonsense(self, needed: OfficialFile) -> None:
        """One adapter file of these shapes, x1.bin, among others; no name tells anything."""
        self.adapter("x1.bin", needed)
        others = [file for file in OFFICIAL_FILES if not same_shapes(file, needed)]
        for i, file in enumerate(others[::3]):
            self.adapter(f"sub/y{i}.safetensors", file)
        for i, dims in enumerate(ENCODER_FILES.values()):
            self.encoder(f"{i}/model.safetensors", dims)
        for i, file in enumerate(file for file in OFFICIAL_FILES if file.lora):
            self.lora(f"lora{i}.safetensors", file)


def same_shapes(first: OfficialFile, second: OfficialFile) -> bool:
    """Whether only names tell two published files apart."""
    plus = (Family.FACEID_PLUS, Family.FACEID_PLUS_V2)
    families = {second.family} | (set(plus) if second.family in plus else set())
    same = first.base == second.base and first.changes == second.changes
    return same and first.family in families


def lora_matrix(file: OfficialFile, shape: tuple[int, ...]) -> torch.Tensor:
    """The first LoRA matrix of a published file: the adapter and its LoRA file share it."""
    index = OFFICIAL_FILES.index(file)
    return torch.randn(shape, generator=torch.Generator().manual_seed(index))


def lora_name(file: OfficialFile) -> str:
    return f"{Path(file.name).stem}_lora.safetensors"


def official(name: str) -> OfficialFile:
    return next(file for file in OFFICIAL_FILES if file.name == name)
