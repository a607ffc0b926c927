"""Loading image encoders: the host's own way where it knows the size, else
by the model's configuration."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import folder_paths
from comfy.clip_model import ACTIVATIONS
from comfy.clip_vision import ClipVisionModel
from torch import Tensor, nn

from ..adapters.vision import ENCODERS
from ..errors import Problem
from ..files.kinds import Kind
from ..files.tensors import open_tensor_file
from ..library.scan import HEAD, EncoderFacts, contents_of
from .pooling_head import EPS, PoolingHead

logger = logging.getLogger("ipadapter")

FOLDER = "clip_vision"
_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_PROJECTION = "visual_projection.weight"
_EMBEDDINGS, _LAYERS = "vision_model.embeddings.", "vision_model.encoder.layers."
_SIGLIP = "siglip_vision_model"
# Sizes that the host itself knows: (hidden width, image size, layers).
_DEPTHS = {1280: 32, 1664: 48, 1024: 24, 1152: 27}
_HOST_SIZES = {(kind.hidden, kind.image_size, _DEPTHS[kind.hidden]) for kind in ENCODERS} | {
    (1152, 512, 27),
}
_PARTS = ("vision_model", "visual_projection", "visual", "multi_modal_projector")
# Heads of the widths whose heads are not 64 wide (published CLIP and SigLIP models).
_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_ADVICE = "Pick a CLIP Vision model, such as CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors."
_LOADED: weakref.WeakValueDictionary[tuple[str, int, int], ClipVisionModel] = (
    weakref.WeakValueDictionary()
)


def encoder_names() -> list[str]:
    """Files of models/clip_vision, and folders there that hold a Hugging Face model."""
    return sorted(_model_folders()) + list(folder_paths.get_filename_list(FOLDER))


def _model_folders() -> dict[str, Path]:
    """Folders with a config.json below models/clip_vision, by name; links are followed as the
    host's own lists follow them."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths(FOLDER):
        for parent, _, names in os.walk(root, followlinks=True):
            if _CONFIG in names and (name := Path(parent).relative_to(root).as_posix()) != ".":
                found.setdefault(name, Path(parent))
    return found


def find_encoder(name: str) -> Path:
    """The file or folder of a listed encoder. FileNotFoundError for any other name."""
    if folder := _model_folders().get(name):
        return folder
    if name in folder_paths.get_filename_list(FOLDER):
        return Path(folder_paths.get_full_path_or_raise(FOLDER, name))
    folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
    raise Problem.FILE_MISSING(
        f"{name} is not in models/clip_vision ({folders}). Put the encoder there and press R to "
        f"refresh the lists.",
        FileNotFoundError,
    )


def encoder_stamp(path: Path) -> tuple[str, int, int]:
    """Changes when an encoder's weights do: path, size, time of change."""
    weights = _weights_of(path)
    stat = weights.stat()
    return str(weights), stat.st_size, stat.st_mtime_ns


def load_encoder(path: Path) -> ClipVisionModel:
    """Open an image encoder; one that is in use already is shared.

    ValueError if the file is no encoder.
    """
    key = encoder_stamp(path)
    encoder = _LOADED.get(key)
    if encoder is None:
        encoder = _LOADED[key] = _open(path, _weights_of(path))
    return encoder


def _weights_of(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise Problem.FILE_MISSING(
        f"{path.name} holds none of {', '.join(_WEIGHTS)}. Download the model's weights into that "
        f"folder.",
        FileNotFoundError,
    )


def _open(path: Path, weights: Path) -> ClipVisionModel:
    """An encoder from its folder or file.

    What is wrong with a file is said before the host reads it.
    """
    tensors = open_tensor_file(weights).tensors
    contents = contents_of(tensors, path.name)
    if contents.problem or contents.kind not in (Kind.CLIP_VISION, Kind.OPENCLIP):
        raise Problem.WRONG_FILE(
            f"{path.name} is not an image encoder: {contents.summary}. {_ADVICE}"
        )
    # A whole model's file has the text's half, too.
    state = {key: tensors[key] for key in tensors if key.partition(".")[0] in _PARTS}
    if contents.kind is Kind.OPENCLIP:
        state = comfy.clip_vision.convert_to_transformers(state, "visual.")
    if contents.encoder is None or f"{_LAYERS}0.mlp.fc1.weight" not in state:
        raise Problem.FILE_BROKEN(f"{path.name} is incomplete: it has no whole layers. {_ADVICE}")
    config = _own_config(path, weights, state)
    try:
        encoder = _built(config, state, contents.encoder, path.name)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise Problem.FILE_BROKEN(
            f"{path.name} does not fit the image encoder that it seems to be: {reason} Download it "
            f"again, with its {_CONFIG}."
        ) from error
    _require_complete(encoder, state, path.name)
    if contents.encoder.siglip:
        _complete_siglip(encoder, state, path.name)
    # The host fills a missing projection with uninitialised numbers.
    has_projection = contents.encoder.projected > 0
    encoder.has_projection = has_projection  # pyright: ignore[reportAttributeAccessIssue]
    return encoder


def _complete_siglip(encoder: ClipVisionModel, state: Mapping[str, Tensor], name: str) -> None:
    """Give an encoder what the host leaves out: the norms' own epsilon, and the pooling head where
    the file has one."""
    for module in encoder.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS
    if HEAD not in state:
        return
    heads = encoder.model.vision_model.encoder.layers[0].self_attn.heads
    try:
        head = PoolingHead.of(state, heads, encoder.dtype)
    except (KeyError, RuntimeError, ValueError) as error:
        raise Problem.FILE_BROKEN(
            f"{name} is incomplete: its pooling head ({HEAD.rpartition('.')[0]}) lacks weights. "
            "Download it again."
        ) from error
    encoder.model.visual_projection = head


def _built(
    config: Mapping[str, Any] | None, state: Mapping[str, Tensor], facts: EncoderFacts, name: str
) -> ClipVisionModel:
    """The host knows the usual sizes; others are built by a configuration, or from shapes."""
    encoder = None
    if config is None and (facts.hidden, facts.image_size, _layers(state)) in _HOST_SIZES:
        encoder = comfy.clip_vision.load_clipvision_from_sd(dict(state))
    return encoder or _build(config or _config_from_shapes(state, facts, name), state)


def _own_config(path: Path, weights: Path, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration that describes the weights.

    One that lies beside a single file may belong to another.
    """
    file = weights.with_name(_CONFIG)
    if not file.exists():
        return None
    try:
        config = _vision_config(json.loads(file.read_text("utf-8")), path.name)
    except ValueError:
        if path.is_dir():
            raise
        return None
    described = (config["hidden_size"], config["num_hidden_layers"], config["patch_size"])
    kernel = state[f"{_EMBEDDINGS}patch_embedding.weight"].shape
    found = (kernel[0], _layers(state), kernel[-1])
    if described == found:
        return _prepared(config, file.with_name(_PREPROCESSOR), state)
    if path.is_dir():
        raise Problem.FILE_BROKEN(
            f"{path.name}: its {_CONFIG} describes an encoder of width, layers and patch size "
            f"{described}, its {weights.name} has {found}. Download both files from one model."
        )
    return None


def _prepared(
    config: dict[str, Any], preprocessor: Path, state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The configuration with the preprocessor's mean and deviation."""
    if preprocessor.exists():
        given = json.loads(preprocessor.read_text("utf-8"))
        config |= {key: given[key] for key in ("image_mean", "image_std") if key in given}
    elif config["model_type"] == _SIGLIP:
        config |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if _PROJECTION not in state:
        config.pop("projection_dim", None)
    return config


def _layers(state: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[3] for key in state if key.startswith(_LAYERS)})


def _config_from_shapes(
    state: Mapping[str, Tensor], facts: EncoderFacts, name: str
) -> dict[str, Any]:
    """What a configuration would say; heads and activation leave no trace in the weights."""
    siglip = f"{_EMBEDDINGS}class_embedding" not in state
    config: dict[str, Any] = {
        "hidden_size": facts.hidden,
        "num_channels": 3,
        "patch_size": facts.patch,
        "image_size": facts.image_size,
        "num_hidden_layers": _layers(state),
        "num_attention_heads": _HEADS.get(facts.hidden, max(facts.hidden // 64, 1)),
        "intermediate_size": state[f"{_LAYERS}0.mlp.fc1.weight"].shape[0],
        "hidden_act": "gelu" if facts.openclip else "quick_gelu",
        "model_type": "clip_vision_model",
    }
    if siglip:
        config |= {"model_type": _SIGLIP, "hidden_act": "gelu_pytorch_tanh"}
        config |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    elif _PROJECTION in state:
        config["projection_dim"] = state[_PROJECTION].shape[0]
    logger.warning(
        "%s: an image encoder of an unusual size without its config.json; assumed are %s heads and "
        "the activation %s. Put the model's config.json beside it, both in a folder of their own.",
        name,
        config["num_attention_heads"],
        config["hidden_act"],
    )
    return config


def _vision_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The vision half of a configuration, with transformers' defaults filled in."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    kinds = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    family = str(config.get("model_type", "clip")).split("_")[0]
    if family not in kinds:
        raise Problem.WRONG_FILE(
            f"{name} is a {config.get('model_type')} model: expected a CLIP or SigLIP vision model "
            f"(config.json)."
        )
    own = dict(config.get("vision_config") or config)
    own.setdefault("projection_dim", config.get("projection_dim", 512))
    filled = kinds[family](**own).to_dict()
    filled["model_type"] = f"{family}_vision_model"
    if filled["hidden_act"] not in ACTIVATIONS:
        raise Problem.WRONG_FILE(
            f"{name}: its {_CONFIG} asks for the activation {filled['hidden_act']!r}, ComfyUI has "
            f"{', '.join(ACTIVATIONS)}. This encoder cannot be used here."
        )
    if family == "siglip":
        filled.pop("projection_dim", None)
    return filled


def _build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ClipVisionModel:
    """The host's encoder class from a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _CONFIG
        path.write_text(json.dumps(config, default=str), "utf-8")
        encoder = ClipVisionModel(str(path))
    encoder.load_sd(dict(state))
    return encoder


def _require_complete(encoder: ClipVisionModel, state: Mapping[str, Tensor], name: str) -> None:
    """ValueError if weights are missing: the host would leave them uninitialised."""
    missing = [key for key in encoder.get_sd() if key not in state and key != _PROJECTION]
    if missing:
        raise Problem.FILE_BROKEN(
            f"{name} is incomplete: {len(missing)} weights are missing, {missing[0]} first. "
            f"Download it again."
        )


def facts_of(clip_vision: Any) -> EncoderFacts:
    """Dimensions of a loaded encoder."""
    vision = clip_vision.model.vision_model.embeddings.patch_embedding
    last, width = clip_vision.model.visual_projection, vision.weight.shape[0]
    projection = getattr(last, "weight", ())
    return EncoderFacts(
        hidden=width,
        projected=width if isinstance(last, PoolingHead) else len(projection),
        image_size=clip_vision.image_size,
        patch=vision.kernel_size[0],
        openclip=False,
        siglip=is_siglip(clip_vision),
    )


def is_siglip(clip_vision: Any) -> bool:
    """Whether a loaded encoder is the host's SigLIP: it has no class token."""
    vision = getattr(getattr(clip_vision, "model", None), "vision_model", None)
    return getattr(getattr(vision, "embeddings", None), "class_embedding", False) is None
