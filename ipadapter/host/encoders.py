"""Loading image encoders: the host's own way where it knows the size, else by the model's
configuration."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.utils
import folder_paths
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..files import EncoderFacts
from ..paths import inside

FOLDER = "clip_vision"
_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_PROJECTION = "visual_projection.weight"
_LOADED: weakref.WeakValueDictionary[tuple[str, int, int], ClipVisionModel] = (
    weakref.WeakValueDictionary()
)


def encoder_names() -> list[str]:
    """Files of models/clip_vision, and folders there that hold a Hugging Face model."""
    files = list(folder_paths.get_filename_list(FOLDER))
    folders = {
        path.parent.relative_to(root).as_posix()
        for root in map(Path, folder_paths.get_folder_paths(FOLDER))
        for path in root.glob(f"**/{_CONFIG}")
        if path.parent != root
    }
    return sorted(folders) + files


def find_encoder(name: str) -> Path:
    """The file or folder of a listed encoder. FileNotFoundError if there is none."""
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        if (path := inside(root, name)).exists():
            return path
    folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
    raise FileNotFoundError(
        f"{name} is not in models/clip_vision ({folders}). Put the encoder there and press R to "
        f"refresh the lists."
    )


def load_encoder(path: Path) -> ClipVisionModel:
    """Open an image encoder; one that is in use already is shared. ValueError if the file is no
    encoder."""
    weights = _weights_of(path)
    stat = weights.stat()
    key = (str(weights), stat.st_size, stat.st_mtime_ns)
    encoder = _LOADED.get(key)
    if encoder is None:
        config = weights.with_name(_CONFIG)
        state = comfy.utils.load_torch_file(str(weights), safe_load=True)
        encoder = _by_config(state, config) if config.exists() else _by_content(state, path.name)
        _LOADED[key] = encoder
    return encoder


def _weights_of(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"{path.name} holds none of {', '.join(_WEIGHTS)}. Download the model's weights into that "
        f"folder."
    )


def _by_content(state: dict[str, Tensor], name: str) -> ClipVisionModel:
    """A single file: the host knows the usual sizes by their depth, other sizes are read from
    shapes."""
    openclip = "visual.transformer.resblocks.0.attn.in_proj_weight" in state
    has_projection = _PROJECTION in state or "visual.proj" in state
    state = comfy.clip_vision.convert_to_transformers(state, "visual.") if openclip else state
    layers = {key.split(".")[3] for key in state if key.startswith("vision_model.encoder.layers.")}
    if not layers:
        raise ValueError(
            f"{name} is not an image encoder: it has no vision_model layers. Pick a CLIP Vision "
            f"model, such as "
            "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors."
        )
    encoder = None
    if len(layers) in (24, 27, 32, 48):
        encoder = comfy.clip_vision.load_clipvision_from_sd(dict(state))
    encoder = encoder or _build(_config_from_shapes(state, len(layers)), state, name)
    encoder.has_projection = has_projection
    return encoder


def _config_from_shapes(state: Mapping[str, Tensor], layers: int) -> dict[str, Any]:
    hidden, channels, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
    positions = state["vision_model.embeddings.position_embedding.weight"].shape[0]
    config = {
        "hidden_size": hidden,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * int((positions - 1) ** 0.5),
        "num_hidden_layers": layers,
        "num_attention_heads": max(hidden // 64, 1),
        "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
    }
    if _PROJECTION in state:
        config["projection_dim"] = state[_PROJECTION].shape[0]
    return config


def _by_config(state: Mapping[str, Tensor], path: Path) -> ClipVisionModel:
    """A Hugging Face folder: its configuration says the rest, its preprocessor the mean, deviation
    and size."""
    config = _vision_config(json.loads(path.read_text("utf-8")), path.parent.name)
    preprocessor = path.with_name(_PREPROCESSOR)
    if preprocessor.exists():
        given = json.loads(preprocessor.read_text("utf-8"))
        config |= {key: given[key] for key in ("image_mean", "image_std") if key in given}
    if _PROJECTION not in state:
        config.pop("projection_dim", None)
    encoder = _build(config, state, path.parent.name)
    encoder.has_projection = _PROJECTION in state or config["model_type"] == "siglip_vision_model"
    return encoder


def _vision_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The vision half of a configuration, with transformers' defaults filled in."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    kinds = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    family = str(config.get("model_type", "clip")).split("_")[0]
    if family not in kinds:
        raise ValueError(
            f"{name} is a {config.get('model_type')} model: expected a CLIP or SigLIP vision model "
            f"(config.json)."
        )
    own = dict(config.get("vision_config") or config)
    own.setdefault("projection_dim", config.get("projection_dim", 512))
    filled = kinds[family](**own).to_dict()
    filled["model_type"] = f"{family}_vision_model"
    if family == "siglip":
        filled.pop("projection_dim", None)
    return filled


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> ClipVisionModel:
    """The host's encoder class from a configuration; ValueError if weights are missing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _CONFIG
        path.write_text(json.dumps(config, default=str), "utf-8")
        encoder = ClipVisionModel(str(path))
    missing, _ = encoder.load_sd(dict(state))
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing:
        raise ValueError(
            f"{name} is incomplete: {len(missing)} weights are missing, {missing[0]} first. "
            f"Download it again."
        )
    return encoder


def facts_of(clip_vision: Any) -> EncoderFacts:
    """Dimensions of a loaded encoder."""
    vision = clip_vision.model.vision_model.embeddings.patch_embedding
    projection = getattr(clip_vision.model.visual_projection, "weight", None)
    return EncoderFacts(
        hidden=vision.weight.shape[0],
        projected=0 if projection is None else projection.shape[0],
        image_size=clip_vision.image_size,
        patch=vision.kernel_size[0],
        openclip=False,
    )
