"""The published adapter files (names, families, bases), for tables in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ipadapter.adapters.families import Family as F

from .adapters import Nested, synthetic_adapter


@dataclass(frozen=True)
class OfficialFile:
    """One published file and what it is."""

    name: str
    family: F
    base: str
    tokens: int = 4
    encoder: str = ""
    lora: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def shapes(self) -> Nested:
        """Its keys and shapes on the meta device."""
        return synthetic_adapter(self.family, self.base, **self.changes)

    def __str__(self) -> str:
        return self.name


H, H_HIDDEN, G = "ViT-H (1024)", "ViT-H (1280)", "ViT-bigG (1280)"
L_HIDDEN = "ViT-L/14 at 336 px (1024)"
ON_G = {"pooled": 1280}
_SD15, _SDXL = "SD1.5", "SDXL"


def _face(stem: str, family: F, base: str, tokens: int = 4, encoder: str = "") -> OfficialFile:
    name = f"ip-adapter-faceid{stem}.bin"
    return OfficialFile(name, family, base, tokens, encoder, lora="portrait" not in stem)


OFFICIAL_FILES = (
    OfficialFile("ip-adapter_sd15.safetensors", F.STANDARD, _SD15, 4, H),
    OfficialFile("ip-adapter_sd15_light.safetensors", F.STANDARD, _SD15, 4, H),
    OfficialFile("ip-adapter_sd15_light_v11.bin", F.STANDARD, _SD15, 4, H),
    OfficialFile("ip-adapter_sd15_vit-G.safetensors", F.STANDARD, _SD15, 4, G, changes=ON_G),
    OfficialFile("ip-adapter-plus_sd15.safetensors", F.PLUS, _SD15, 16, H_HIDDEN),
    OfficialFile("ip-adapter-plus-face_sd15.safetensors", F.PLUS, _SD15, 16, H_HIDDEN),
    OfficialFile("ip-adapter-full-face_sd15.safetensors", F.FULL_FACE, _SD15, 257, H_HIDDEN),
    OfficialFile("ip_plus_composition_sd15.safetensors", F.PLUS, _SD15, 16, H_HIDDEN),
    OfficialFile("ip-adapter_sdxl.safetensors", F.STANDARD, _SDXL, 4, G, changes=ON_G),
    OfficialFile("ip-adapter_sdxl_vit-h.safetensors", F.STANDARD, _SDXL, 4, H),
    OfficialFile("ip-adapter-plus_sdxl_vit-h.safetensors", F.PLUS, _SDXL, 16, H_HIDDEN),
    OfficialFile("ip-adapter-plus-face_sdxl_vit-h.safetensors", F.PLUS, _SDXL, 16, H_HIDDEN),
    OfficialFile("ip_plus_composition_sdxl.safetensors", F.PLUS, _SDXL, 16, H_HIDDEN),
    OfficialFile("noobIPAMARK1_mark1.safetensors", F.STANDARD, _SDXL, 4, G, changes=ON_G),
    _face("_sd15", F.FACEID, _SD15),
    _face("-plus_sd15", F.FACEID_PLUS, _SD15, 4, H_HIDDEN),
    _face("-plusv2_sd15", F.FACEID_PLUS_V2, _SD15, 4, H_HIDDEN),
    _face("-portrait_sd15", F.PORTRAIT, _SD15, 16),
    _face("-portrait-v11_sd15", F.PORTRAIT, _SD15, 16),
    _face("_sdxl", F.FACEID, _SDXL),
    _face("-plusv2_sdxl", F.FACEID_PLUS_V2, _SDXL, 4, H_HIDDEN),
    _face("-portrait_sdxl", F.PORTRAIT, _SDXL, 16),
    _face("-portrait_sdxl_unnorm", F.PORTRAIT_UNNORM, _SDXL, 16),
    OfficialFile("Kolors-IP-Adapter-Plus.bin", F.KOLORS_PLUS, "Kolors", 16, L_HIDDEN),
    OfficialFile(
        "Kolors-IP-Adapter-FaceID-Plus.bin", F.KOLORS_FACEID_PLUS, "Kolors", 6, L_HIDDEN, lora=True
    ),
)
