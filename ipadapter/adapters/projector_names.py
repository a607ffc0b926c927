"""Projectors under diffusers' names, told by them and given back their official ones.

diffusers renames every projector that it loads, and splits to_kv:
https://github.com/huggingface/diffusers/blob/58eb52c0803ea9af3abec60841c2a093bdf1f951/src/diffusers/loaders/unet.py#L379
"""

from __future__ import annotations

import re

from ..files.tensors import Shapes

Rules = tuple[tuple[str, str], ...]  # (start of diffusers' name, of the official one)

# Within `layers.{n}.` of a resampler; the second half is that of diffusers before 0.29.
_BLOCK: Rules = (
    ("ln0.", "0.norm1."),
    ("ln1.", "0.norm2."),
    ("attn.to_out.0.", "0.to_out."),
    ("attn.", "0."),
    ("ff.0.", "1.0."),
    ("ff.1.net.0.proj.", "1.1."),
    ("ff.1.net.2.", "1.3."),
    ("0.weight", "0.norm1.weight"),
    ("0.bias", "0.norm1.bias"),
    ("1.weight", "0.norm2.weight"),
    ("1.bias", "0.norm2.bias"),
    ("2.to_out.0.", "0.to_out."),
    ("2.to_", "0.to_"),
    ("3.0.", "1.0."),
    ("3.1.net.0.proj.", "1.1."),
    ("3.1.net.2.", "1.3."),
)
_STANDARD: Rules = (("image_embeds.", "proj."),)
_FACEID: Rules = (("ff.net.0.proj.", "proj.0."), ("ff.net.2.", "proj.2."))
_FULL_FACE: Rules = (*_FACEID, ("norm.", "proj.3."))
_FACEID_PLUS: Rules = (
    ("proj.net.0.proj.", "proj.0."),
    ("proj.net.2.", "proj.2."),
    *((part, f"perceiver_resampler.{part}") for part in ("proj_", "norm_out.", "layers.")),
)
_LAYER = re.compile(r"((?:.*\.)?layers\.\d+\.)(.+)")
_KEY_OR_VALUE = re.compile(r"(.*layers\.\d+\.0\.)to_([kv])\.weight")


def official_names(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """{official key: the keys of the file whose rows it holds}; official files stay as they are."""
    rules = _rules(shapes)
    names = {_start(_within_layer(key), rules): key for key in shapes}
    official: dict[str, tuple[str, ...]] = {}
    for name, key in names.items():
        match = _KEY_OR_VALUE.fullmatch(name)
        pair = [names.get(f"{match[1]}to_{half}.weight", "") for half in "kv"] if match else []
        if match and all(pair) and len({shapes[half] for half in pair}) == 1:
            official[f"{match[1]}to_kv.weight"] = tuple(pair)
        else:
            official[name] = (key,)
    return official


def _rules(shapes: Shapes) -> Rules:
    """How the names outside of resampler layers changed."""
    if "image_embeds.weight" in shapes:
        return _STANDARD
    if "proj.net.0.proj.weight" in shapes:
        return _FACEID_PLUS
    if "ff.net.0.proj.weight" not in shapes:
        return ()
    # Two projectors of the same names: one token per patch, or several tokens of a face.
    rows = shapes.get("ff.net.2.weight", ())[:1]
    inner, width = (*shapes["ff.net.0.proj.weight"], 0, 0)[:2]
    one_token = rows == shapes.get("norm.weight", ()) and inner == width
    return _FULL_FACE if one_token else _FACEID


def _within_layer(key: str) -> str:
    match = _LAYER.fullmatch(key)
    return match[1] + _start(match[2], _BLOCK) if match else key


def _start(name: str, rules: Rules) -> str:
    """The name with its start replaced by the first rule that fits."""
    for theirs, ours in rules:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name
