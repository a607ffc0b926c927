"""Image encoder files with seeded random weights, in the layouts in which they are published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,  # 64 wide, as a reader without a configuration has to assume
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
_USUAL = {"num_attention_heads": 16, "patch_size": 14, "image_size": 224, "hidden_act": "gelu"}
_OPENAI = {**_LARGE, **_USUAL, "projection_dim": 768, "hidden_act": "quick_gelu"}
OFFICIAL: dict[str, dict[str, Any]] = {
    "ViT-L/14": _OPENAI,
    "ViT-L/14 at 336 px": {**_OPENAI, "image_size": 336},
    "ViT-H": {
        **_USUAL,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "projection_dim": 1024,
    },
    "ViT-bigG": {
        **_USUAL,
        "hidden_size": 1664,
        "intermediate_size": 8192,
        "num_hidden_layers": 48,
        "projection_dim": 1280,
    },
}


def clip(config: Mapping[str, Any]) -> Any:
    """A CLIPVisionModelWithProjection without weights."""
    import transformers

    library: Any = transformers
    with torch.device("meta"):
        return library.CLIPVisionModelWithProjection(library.CLIPVisionConfig(**config))


def siglip(config: Mapping[str, Any]) -> Any:
    """A SiglipVisionModel without weights."""
    import transformers

    library: Any = transformers
    with torch.device("meta"):
        return library.SiglipVisionModel(library.SiglipVisionConfig(**config))


SIGLIP: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
}


def random_weights(model: Any, seed: int = 3) -> dict[str, Tensor]:
    """fp16 weights for a model, of the published files' names, that keep what passes through at
    its size."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=g)
        if parameter.ndim < 2:
            values = 0.1 * values + (1.0 if key.endswith("norm.weight") else 0.0)
        else:
            values *= (parameter.numel() / parameter.shape[0]) ** -0.5
        state[published(key)] = values.half()
    return state


def with_weights(model: Any, state: Mapping[str, Tensor]) -> Any:
    """The model in fp32 with these weights."""
    names = {published(key): key for key, _ in model.named_parameters()}
    weights = {names[key]: value.float() for key, value in state.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    for module in model.modules():
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    return model.train(False)


def published(key: str) -> str:
    """A parameter's name in files; newer libraries leave out a prefix in memory."""
    bare = key.startswith("vision_model.") or key.startswith("visual_projection.")
    return key if bare else f"vision_model.{key}"


def save_folder(folder: Path, model: Any, state: Mapping[str, Tensor], **preprocessor: Any) -> Path:
    """A Hugging Face folder: weights, configuration, and a preprocessor if one is given."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / "model.safetensors")
    model.config.to_json_file(folder / "config.json", use_diff=False)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), "utf-8")
    return folder


def openclip_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under OpenCLIP's names."""
    start = "vision_model.encoder.layers."
    outer = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    found: dict[str, Tensor] = {"visual.proj": state["visual_projection.weight"].T.contiguous()}
    for key, value in state.items():
        name, end = key.rsplit(".", 1)
        if key in outer or name in outer:
            found[outer.get(key) or f"{outer[name]}.{end}"] = value
        elif key.startswith(start):
            layer, part = name.removeprefix(start).split(".", 1)
            block = f"visual.transformer.resblocks.{layer}."
            if part in inner:
                found[f"{block}{inner[part]}.{end}"] = value
            elif part.endswith("q_proj"):
                parts = [state[key.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
                found[f"{block}attn.in_proj_{end}"] = torch.cat(parts)
    return found
